"""The demo: find wrong labels in film reviews with a LoRA-tuned transformer.

Its modules `settings`, `packages` and `output` need no optional package; the rest needs the extra
`demo` and the two packages that `packages` names.
"""
