"""The label of tokens that do not count, apart from what needs torch."""

IGNORED = -100
"""As in PyTorch and transformers."""
