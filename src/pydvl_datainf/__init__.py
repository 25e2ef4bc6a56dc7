"""DataInf for pyDVL: which training examples helped or hurt which predictions."""

import warnings

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import (
    BatchError,
    BlockError,
    DampingError,
    DataInfError,
    ModelError,
    ObjectiveError,
    SourceError,
)

with warnings.catch_warnings():
    # Importing pyDVL 0.10 announces deprecations of its own.
    warnings.simplefilter("ignore", FutureWarning)
    from pydvl_datainf.influence import DataInfInfluence
from pydvl_datainf.objectives import Objective, SequenceClassification

__all__ = [
    "BatchError",
    "BlockError",
    "DampingError",
    "DataInfError",
    "DataInfInfluence",
    "ModelError",
    "Objective",
    "ObjectiveError",
    "SequenceClassification",
    "SourceError",
    "__version__",
]
