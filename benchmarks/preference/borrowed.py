"""The modules of benchmarks/language that serve here too."""

import sys
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "language"))
encoding, influential, models, tuning = map(
    import_module, ("encoding", "influential", "models", "tuning")
)
