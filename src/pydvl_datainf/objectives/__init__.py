"""From a model and a batch to one loss per sample."""

from pydvl_datainf.objectives.classification import SequenceClassification, TokenClassification
from pydvl_datainf.objectives.diffusion import Denoising
from pydvl_datainf.objectives.images import ImageLayout, outside_language, without_images
from pydvl_datainf.objectives.language import CausalLM, Seq2SeqLM
from pydvl_datainf.objectives.margin import AnswerMargin, Margin
from pydvl_datainf.objectives.output_loss import OutputLoss, as_objective
from pydvl_datainf.objectives.preference import Preference, reference_log_probabilities
from pydvl_datainf.objectives.protocol import Objective, check_losses
from pydvl_datainf.objectives.reward import Reward

__all__ = [
    "AnswerMargin",
    "CausalLM",
    "Denoising",
    "ImageLayout",
    "Margin",
    "Objective",
    "OutputLoss",
    "Preference",
    "Reward",
    "Seq2SeqLM",
    "SequenceClassification",
    "TokenClassification",
    "as_objective",
    "check_losses",
    "outside_language",
    "reference_log_probabilities",
    "without_images",
]
