"""The demo: find wrong labels in film reviews with a LoRA-tuned transformer.

This package's `__init__` and `settings` need no optional package; the rest needs the extra
`demo` and the two packages that `packages` names.
"""
