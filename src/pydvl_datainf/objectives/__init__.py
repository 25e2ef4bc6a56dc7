"""From a model and a batch to one loss per sample."""

from pydvl_datainf.objectives.classification import SequenceClassification, TokenClassification
from pydvl_datainf.objectives.language import CausalLM
from pydvl_datainf.objectives.output_loss import OutputLoss, as_objective
from pydvl_datainf.objectives.protocol import Objective, check_losses

__all__ = [
    "CausalLM",
    "Objective",
    "OutputLoss",
    "SequenceClassification",
    "TokenClassification",
    "as_objective",
    "check_losses",
]
