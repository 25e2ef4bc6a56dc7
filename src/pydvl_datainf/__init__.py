"""DataInf for pyDVL: which training examples helped or hurt which predictions."""

from typing import TYPE_CHECKING

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import (
    BatchError,
    BlockError,
    ClusterError,
    DampingError,
    DataInfError,
    JobError,
    ModelError,
    NonFiniteError,
    ObjectiveError,
    OptimizerError,
    OutputExistsError,
    PlanError,
    SourceError,
    StoreError,
    StoreExistsError,
)
from pydvl_datainf.lazy import imported_when_used

if TYPE_CHECKING:
    from pydvl_datainf.gradients import AdamPreconditioner
    from pydvl_datainf.huggingface import influence_from_trainer
    from pydvl_datainf.influence import (
        DataInfInfluence,
        EkfacInfluence,
        EnsembleInfluence,
        ExactInfluence,
        HessianFreeInfluence,
        LissaInfluence,
    )
    from pydvl_datainf.influence.approximation import approximation_error
    from pydvl_datainf.inverse.approximation_error import ApproximationError
    from pydvl_datainf.objectives import (
        AnswerMargin,
        CausalLM,
        Denoising,
        Margin,
        Objective,
        Preference,
        Reward,
        Seq2SeqLM,
        SequenceClassification,
        TokenClassification,
        reference_log_probabilities,
    )
    from pydvl_datainf.results.comparisons import CompressionError
    from pydvl_datainf.results.reader import InfluenceRun
    from pydvl_datainf.runner.options import RunOptions
    from pydvl_datainf.runner.run import compute_self_influence, run_influences
    from pydvl_datainf.runner.sums import sum_runs

__all__ = [
    "AdamPreconditioner",
    "AnswerMargin",
    "ApproximationError",
    "BatchError",
    "BlockError",
    "CausalLM",
    "ClusterError",
    "CompressionError",
    "DampingError",
    "DataInfError",
    "DataInfInfluence",
    "Denoising",
    "EkfacInfluence",
    "EnsembleInfluence",
    "ExactInfluence",
    "HessianFreeInfluence",
    "InfluenceRun",
    "JobError",
    "LissaInfluence",
    "Margin",
    "ModelError",
    "NonFiniteError",
    "Objective",
    "ObjectiveError",
    "OptimizerError",
    "OutputExistsError",
    "PlanError",
    "Preference",
    "Reward",
    "RunOptions",
    "Seq2SeqLM",
    "SequenceClassification",
    "SourceError",
    "StoreError",
    "StoreExistsError",
    "TokenClassification",
    "__version__",
    "approximation_error",
    "compute_self_influence",
    "influence_from_trainer",
    "reference_log_probabilities",
    "run_influences",
    "sum_runs",
]

if not TYPE_CHECKING:
    __getattr__ = imported_when_used(
        __name__,
        {
            "gradients": ("AdamPreconditioner",),
            "huggingface": ("influence_from_trainer",),
            "influence": (
                "DataInfInfluence",
                "EkfacInfluence",
                "EnsembleInfluence",
                "ExactInfluence",
                "HessianFreeInfluence",
                "LissaInfluence",
            ),
            "influence.approximation": ("approximation_error",),
            "inverse.approximation_error": ("ApproximationError",),
            "results.comparisons": ("CompressionError",),
            "results.reader": ("InfluenceRun",),
            "runner.options": ("RunOptions",),
            "runner.run": (
                "compute_self_influence",
                "run_influences",
            ),
            "runner.sums": ("sum_runs",),
            "objectives": (
                "AnswerMargin",
                "CausalLM",
                "Denoising",
                "Margin",
                "Objective",
                "Preference",
                "Reward",
                "Seq2SeqLM",
                "SequenceClassification",
                "TokenClassification",
                "reference_log_probabilities",
            ),
        },
    )
