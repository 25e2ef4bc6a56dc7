"""The pieces of work of a run: each reads what it needs, computes, and writes whole chunks.

Results pass between pieces of work through the store alone. So it does not matter which process
does which of them, what is done stays done, and no message is larger than a few numbers. Each
returns how many gradients it computed.
"""

from pydvl_datainf.runner.tasks.approximation import write_approximation_error
from pydvl_datainf.runner.tasks.describe import describe, survey
from pydvl_datainf.runner.tasks.factors import (
    CORRECTIONS,
    SOLUTIONS,
    write_correction,
    write_factors,
    write_rows,
    write_solution,
    write_vectors,
)
from pydvl_datainf.runner.tasks.scores import (
    CANDIDATE_SCORES,
    CANDIDATES,
    SUMS,
    write_mean,
    write_scores,
    write_top,
)
from pydvl_datainf.runner.tasks.self_influence import (
    SELF_PARTS,
    all_self_influences,
    write_self_influence,
    write_self_part,
    write_self_sum,
)

__all__ = [
    "CANDIDATES",
    "CANDIDATE_SCORES",
    "CORRECTIONS",
    "SELF_PARTS",
    "SOLUTIONS",
    "SUMS",
    "all_self_influences",
    "describe",
    "survey",
    "write_approximation_error",
    "write_correction",
    "write_factors",
    "write_mean",
    "write_rows",
    "write_scores",
    "write_self_influence",
    "write_self_part",
    "write_self_sum",
    "write_solution",
    "write_top",
    "write_vectors",
]
