"""The task that measures how far the inverse of a run is from the exact one."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from pydvl_datainf.inverse.agreement import compared_with_exact
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.record import APPROXIMATION, sealed
from pydvl_datainf.runner.sizing import sampled_queries
from pydvl_datainf.runner.tasks.context import Context
from pydvl_datainf.runner.tasks.moments import method_of
from pydvl_datainf.runner.tasks.rows import tile_rows
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, concatenated, length


def write_approximation_error(samples: int, context: Context, inputs: Inputs) -> None:
    """The error of the inverse on some samples, block by block, and that of their influences."""
    spec, store = context.spec, context.store
    chosen = spec.plan.sampled(samples)
    rows = concatenated([_first(tile_rows(context, inputs, j), k) for j, k in chosen])
    places = sampled_queries(spec.test.n)
    vectors = concatenated(
        [v for at in places for _, v in context.computed(inputs, inputs.test, spec.test, at)]
    )
    methods = {block: method_of(block, context, inputs) for block in spec.widths}
    fed = _weighed(rows, chosen, methods, context) if spec.compression else rows
    found = compared_with_exact(methods, vectors, rows, context.damping, fed)
    told = {
        "n": length(rows),
        "m": length(vectors),
        "score_error": found.score_error,
        "rank_correlation": found.rank_correlation,
        "asked": samples,
    }
    store.label(APPROXIMATION, sealed(told))
    values = [list(found.errors.values()), list(found.cosines.values())]
    store.write(APPROXIMATION, ..., np.array(values))  # last: marks it as done


def _weighed(
    rows: BlockVectors,
    chosen: Sequence[tuple[int, int]],
    methods: Mapping[str, Method],
    context: Context,
) -> BlockVectors:
    """What solvers are fed in place of compressed rows."""
    tiles = ((context.spec.plan.train[j].start, k) for j, k in chosen)
    read = (context.read_rows("outside_norms", slice(at, at + k)) for at, k in tiles)
    outside = torch.from_numpy(np.concatenate(list(read)))
    return OrderedDict(
        (block, methods[block].weighed(C, outside[:, b].to(C.device), context.damping[block]))
        for b, (block, C) in enumerate(rows.items())
    )


def _first(pieces: Iterator[tuple[slice, BlockVectors]], count: int) -> BlockVectors:
    """The first rows of a tile."""
    found = []
    for place, rows in pieces:
        wanted = max(0, min(place.stop, count) - place.start)
        found.append(OrderedDict((block, G[:wanted]) for block, G in rows.items()))
        if place.stop >= count:
            break
    return concatenated(found)
