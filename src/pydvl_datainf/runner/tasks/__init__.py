"""The tasks of a run: each reads what it needs, computes, and writes whole chunks.

Results pass between tasks through the store alone. So it does not matter which process does which
of them, what is done stays done, and no message is larger than a few numbers.
"""

from typing import Any

from pydvl_datainf.runner.tasks.approximation import write_approximation_error
from pydvl_datainf.runner.tasks.bases import (
    RANKS,
    SAMPLE,
    sample_name,
    sample_parts,
    write_basis,
    write_compression_error,
    write_rank,
    write_sample,
)
from pydvl_datainf.runner.tasks.blocks import (
    RESIDUALS,
    SELF_PARTS,
    PieceWork,
    write_piece,
    write_self_sum,
)
from pydvl_datainf.runner.tasks.context import Context
from pydvl_datainf.runner.tasks.describe import describe, survey
from pydvl_datainf.runner.tasks.gradients import write_rows, write_vectors
from pydvl_datainf.runner.tasks.losses import write_losses
from pydvl_datainf.runner.tasks.matrices import VECTORS, vectors_name
from pydvl_datainf.runner.tasks.moments import (
    moment_spans,
    moment_sums_name,
    write_moment_sums,
    write_moments,
)
from pydvl_datainf.runner.tasks.scores import (
    CANDIDATE_SCORES,
    CANDIDATES,
    PARTS,
    SUMS,
    parts_name,
    write_mean,
    write_sums,
    write_top,
)
from pydvl_datainf.runner.tasks.sides import (
    side_parts,
    side_sums_name,
    write_side_moments,
    write_sides,
)
from pydvl_datainf.runner.tasks.spec import RunSpec
from pydvl_datainf.runner.tasks.streamed import (
    FACTORS,
    corrections_name,
    write_correction,
    write_factors,
    write_scores,
    write_self_influence,
)
from pydvl_datainf.runner.worker_inputs import Inputs

__all__ = [
    "CANDIDATES",
    "CANDIDATE_SCORES",
    "FACTORS",
    "PARTS",
    "RANKS",
    "RESIDUALS",
    "SAMPLE",
    "SELF_PARTS",
    "SUMS",
    "VECTORS",
    "Context",
    "PieceWork",
    "RunSpec",
    "corrections_name",
    "describe",
    "moment_spans",
    "moment_sums_name",
    "parts_name",
    "perform",
    "sample_name",
    "sample_parts",
    "side_parts",
    "side_sums_name",
    "survey",
    "vectors_name",
    "write_approximation_error",
    "write_basis",
    "write_compression_error",
    "write_correction",
    "write_factors",
    "write_losses",
    "write_mean",
    "write_moment_sums",
    "write_moments",
    "write_piece",
    "write_rank",
    "write_rows",
    "write_sample",
    "write_scores",
    "write_self_influence",
    "write_self_sum",
    "write_side_moments",
    "write_sides",
    "write_sums",
    "write_top",
    "write_vectors",
]


def perform(item: tuple[Any, Any], context: Context, inputs: Inputs) -> int:
    """Does a task.

    Args:
        item: the function, and what it is to do.
        context: of the run.
        inputs: the model and the data.

    Returns:
        How many gradients it computed.
    """
    task, wanted = item
    context.begin(task)
    before = context.gradients
    task(wanted, context, inputs)
    return context.gradients - before
