"""What scores are worth for predicting retraining.

Whoever has influences and can train again asks `validate`: models are trained on random halves of
the data, and what the scores predict is compared with what came out. `compare` sets other methods
beside them on the same retrainings.
"""

from typing import TYPE_CHECKING

from pydvl_datainf.lazy import imported_when_used
from pydvl_datainf.results.beside import bank_beside

if TYPE_CHECKING:
    from pydvl_datainf.yardstick.bank import Bank
    from pydvl_datainf.yardstick.removal import Removal, validate_removal
    from pydvl_datainf.yardstick.retraining import Train, retrain_on_all
    from pydvl_datainf.yardstick.statistics import Validation, expected_error, measure
    from pydvl_datainf.yardstick.subsets import Scores, half_subsets
    from pydvl_datainf.yardstick.validation import Comparison, compare, validate

__all__ = [
    "Bank",
    "Comparison",
    "Removal",
    "Scores",
    "Train",
    "Validation",
    "bank_beside",
    "compare",
    "expected_error",
    "half_subsets",
    "measure",
    "retrain_on_all",
    "validate",
    "validate_removal",
]

if not TYPE_CHECKING:
    __getattr__ = imported_when_used(
        __name__,
        {
            "bank": ("Bank",),
            "removal": ("Removal", "validate_removal"),
            "retraining": ("Train", "retrain_on_all"),
            "statistics": ("Validation", "expected_error", "measure"),
            "subsets": ("Scores", "half_subsets"),
            "validation": ("Comparison", "compare", "validate"),
        },
    )
