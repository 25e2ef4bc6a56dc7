"""The modules of benchmarks/language that serve here too."""

import sys
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "language"))
encoding, generators, maths, methods, models, sentences, tuning = map(
    import_module,
    ("encoding", "generators", "maths", "methods", "models", "sentences", "tuning"),
)
