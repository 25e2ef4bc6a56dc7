"""How far the inverse of a run is from the exact one."""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from pydvl_datainf.inverse.agreement import compared_with_exact
from pydvl_datainf.results.plan import sampled_queries
from pydvl_datainf.results.record import APPROXIMATION, sealed
from pydvl_datainf.runner.job import Job
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, concatenated, length


def write_approximation_error(samples: int, job: Job, inputs: Inputs) -> int:
    """The error of the inverse on some samples, block by block, and that of their influences."""
    before = job.gradients
    rows = concatenated([_first(job.rows(inputs, j), k) for j, k in job.plan.sampled(samples)])
    places = sampled_queries(job.test.n)
    vectors = concatenated(
        [v for place in places for _, v in job.computed(inputs, inputs.test, job.test, place)]
    )
    found = compared_with_exact(job.inverse, vectors, rows, job.damping)
    told = {
        "n": length(rows),
        "m": length(vectors),
        "score_error": found.score_error,
        "rank_correlation": found.rank_correlation,
        "asked": samples,
    }
    job.store.label(APPROXIMATION, sealed(told))
    values = [list(found.errors.values()), list(found.cosines.values())]
    job.store.write(APPROXIMATION, ..., np.array(values))  # last: marks it as done
    return job.gradients - before


def _first(pieces: Iterator[tuple[slice, BlockVectors]], count: int) -> BlockVectors:
    """The first rows of a tile."""
    found = []
    for place, rows in pieces:
        wanted = max(0, min(place.stop, count) - place.start)
        found.append(OrderedDict((block, G[:wanted]) for block, G in rows.items()))
        if place.stop >= count:
            break
    return concatenated(found)
