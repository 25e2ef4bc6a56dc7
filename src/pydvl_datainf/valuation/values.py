"""From influences to values: means over test samples, sums over groups, and pyDVL's result."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydvl.utils.status import Status
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.result import ValuationResult

from pydvl_datainf.errors import PlanError, SourceError
from pydvl_datainf.results.reader import InfluenceRun

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int_]


class Values(NamedTuple):
    """Values of the units of a data set: its samples or groups.

    Args:
        values: (g,).
        variances: of the influences over the test samples, (g,); NaN where not known.
        m: test samples.
    """

    values: Floats
    variances: Floats
    m: int


def to_valuation_result(run: InfluenceRun, data: Dataset | None = None) -> ValuationResult:
    """The values of the training samples of a run: their mean influences.

    Where the run has groups of test samples (`query_groups`), these take the place of test samples.

    Args:
        run: complete.
        data: its training samples, for their names, or for groups of them. The run's ids of
            training samples (positions, where none were given) are indices into the arrays that
            the data was made of.

    Returns:
        The result as of `DataInfValuation`. Variances are NaN where the run kept `top_k` scores.

    Raises:
        StoreError: if the run is not complete, or damaged.
        SourceError: if the data has other indices than the ids of the run.
    """
    ids, method = run.train_ids, run.attrs["fingerprint"]["method"]
    if data is not None:
        values = mean_of_run(run, positions_of(data, ids))
        return result_of(values, method, data.indices, data.names)
    places = np.arange(len(ids))
    indices = ids if ids.dtype.kind in "iu" else places
    return result_of(mean_of_run(run, places), method, indices, ids.astype(np.str_))


def result_of(values: Values, algorithm: str, indices: Any, names: Any) -> ValuationResult:
    """The result as pyDVL has it, with copies of indices and names."""
    return ValuationResult(
        values=values.values,
        variances=values.variances,
        counts=np.full(len(values.values), values.m),
        indices=np.array(indices),
        data_names=np.array(names),
        algorithm=algorithm,
        status=Status.Converged,
    )


def positions_of(data: Dataset, ids: npt.NDArray[Any]) -> Integers:
    """For each training sample the position of its unit, itself or its group, in the data.

    Args:
        data: of g units.
        ids: of the training samples, (n,): indices into the arrays of the data, in any order.

    Returns:
        Numbers from 0 to g - 1, (n,).

    Raises:
        SourceError: if the ids are others than the data's indices.
    """
    expected = np.sort(data.data_indices())
    if ids.dtype.kind not in "iu" or not np.array_equal(np.sort(ids), expected):
        raise SourceError(
            f"The run has {len(ids)} training samples with ids such as {ids[0]!r}, and the data "
            f"{len(expected)} with the indices 0 to {len(expected) - 1}. Pass the data that the "
            "run was made with, and to the run no other ids of its training samples."
        )
    position = {index: p for p, index in enumerate(data.indices.tolist())}
    owners: Any = data.logical_indices(ids)  # type: ignore[arg-type]
    return np.array([position[owner] for owner in owners.tolist()])


def unit_sums(scores: Floats, positions: Integers) -> Floats:
    """Adds up the columns of each unit.

    Args:
        scores: (..., n).
        positions: for each column a number from 0 to g - 1, each of which occurs, (n,).

    Returns:
        The sums, (..., g).

    Examples:
        >>> unit_sums(np.array([[1.0, 2.0, 4.0]]), np.array([1, 0, 1]))
        array([[2., 5.]])
    """
    order = np.argsort(positions, kind="stable")
    starts = np.flatnonzero(np.diff(positions[order], prepend=-1))
    return np.add.reduceat(scores[..., order], starts, axis=-1)


def mean_over(tiles: Iterable[Floats]) -> Values:
    """Mean and sample variance over the rows of all tiles, one tile in memory at a time.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.

    Args:
        tiles: influences on b test samples, (b, g); one or more.

    Returns:
        The values.
    """
    m, mean, squares = 0, np.zeros(1), np.zeros(1)
    for tile in tiles:
        b, centre = len(tile), tile.mean(0)
        squares = squares + ((tile - centre) ** 2).sum(0) + (centre - mean) ** 2 * (m * b / (m + b))
        mean = mean + (centre - mean) * (b / (m + b))
        m += b
    return Values(mean, squares / (m - 1) if m > 1 else _unknown(len(mean)), m)


def aggregated(tiles: Iterable[Floats], aggregate: Callable[[Floats], Any]) -> Values:
    """Values by a function of all influences, which are in memory together.

    Args:
        tiles: influences on b test samples, (b, g); one or more.
        aggregate: of the influences (m, g), to g values.

    Returns:
        The values.

    Raises:
        PlanError: if the function returns anything but g finite numbers.
    """
    scores = np.concatenate(list(tiles))
    values = np.asarray(aggregate(scores), dtype=np.float64)
    if values.shape != scores.shape[1:] or not np.isfinite(values).all():
        raise PlanError(
            f"aggregate must return one finite number for each column of the influences, of shape "
            f"{scores.shape}. It returned {values!r}."
        )
    return Values(values, _unknown(len(values)), len(scores))


def mean_of_run(run: InfluenceRun, positions: Integers) -> Values:
    """The run's own means, and variances where it kept all scores."""
    values = unit_sums(run.mean_influence(), positions)
    if run.scores is None:
        return Values(values, _unknown(len(values)), run.plan.m)
    spread = mean_over(unit_sums(tile, positions) for tile in tiles_of(run))
    return spread._replace(values=values)


def tiles_of(run: InfluenceRun) -> Iterator[Floats]:
    """The scores of a run that kept them, some test samples at a time, summed over blocks."""
    scores: Any = run.scores
    for queries in run.plan.test:
        try:
            tile = np.asarray(scores[queries], dtype=np.float64)
        except Exception:
            run.check()  # raises, and names what is damaged
            raise
        if np.isnan(tile).any():  # a chunk is not there
            run.check()
        yield tile.sum(1) if tile.ndim == 3 else tile


def _unknown(g: int) -> Floats:
    return np.full(g, np.nan)
