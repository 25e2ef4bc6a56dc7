"""transformers and peft: models from folders, texts from files, and the way in from a Trainer.

What loads or reads needs the extra [hf]; importing does not.
"""

from typing import TYPE_CHECKING

from pydvl_datainf.lazy import imported_when_used

if TYPE_CHECKING:
    from pydvl_datainf.huggingface.answers import (
        AnswerEncoder,
        ChatEncoder,
        PairEncoder,
        TranslationEncoder,
    )
    from pydvl_datainf.huggingface.builder import InfluenceBuilder
    from pydvl_datainf.huggingface.classes import ClassEncoder, TagEncoder
    from pydvl_datainf.huggingface.diffusion import DiffusionFiles
    from pydvl_datainf.huggingface.encoder import Encoder
    from pydvl_datainf.huggingface.images import ImageReader, ImageSamples, read_arrays
    from pydvl_datainf.huggingface.models import ModelFiles, Task
    from pydvl_datainf.huggingface.optimizer import read_adam
    from pydvl_datainf.huggingface.records import read_records
    from pydvl_datainf.huggingface.selection import Parameters, Selection, select_parameters
    from pydvl_datainf.huggingface.tokens import TokenSamples
    from pydvl_datainf.huggingface.trainer import TrainerInfluence, influence_from_trainer

__all__ = [
    "AnswerEncoder",
    "ChatEncoder",
    "ClassEncoder",
    "DiffusionFiles",
    "Encoder",
    "ImageReader",
    "ImageSamples",
    "InfluenceBuilder",
    "ModelFiles",
    "PairEncoder",
    "Parameters",
    "Selection",
    "TagEncoder",
    "Task",
    "TokenSamples",
    "TrainerInfluence",
    "TranslationEncoder",
    "influence_from_trainer",
    "read_adam",
    "read_arrays",
    "read_records",
    "select_parameters",
]

if not TYPE_CHECKING:
    __getattr__ = imported_when_used(
        __name__,
        {
            "answers": (
                "AnswerEncoder",
                "ChatEncoder",
                "PairEncoder",
                "TranslationEncoder",
            ),
            "builder": ("InfluenceBuilder",),
            "classes": (
                "ClassEncoder",
                "TagEncoder",
            ),
            "diffusion": ("DiffusionFiles",),
            "encoder": ("Encoder",),
            "images": (
                "ImageReader",
                "ImageSamples",
                "read_arrays",
            ),
            "models": (
                "ModelFiles",
                "Task",
            ),
            "optimizer": ("read_adam",),
            "records": ("read_records",),
            "selection": (
                "Parameters",
                "Selection",
                "select_parameters",
            ),
            "tokens": ("TokenSamples",),
            "trainer": (
                "TrainerInfluence",
                "influence_from_trainer",
            ),
        },
    )
