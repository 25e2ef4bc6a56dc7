"""Which training samples to keep when the model is tuned again, by what a run says of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pydvl_datainf.errors import StoreError
from pydvl_datainf.evaluation import Floats, Indices, largest
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.terminal import some

Amount: TypeAlias = int | float
"""A number of samples, or, as a float up to 1, a share of them."""


@dataclass(frozen=True, slots=True)
class SampleSelection:
    """Training samples that are kept, and those that are dropped.

    Attributes:
        kept: positions in the training data, ascending.
        dropped: positions, the strongest reason to drop first.
        measure: what `values` are called.
        values: what was decided by, of each training sample, (n,).
        reason: why samples are dropped, in words.
    """

    kept: Indices
    dropped: Indices
    measure: str
    values: Floats
    reason: str


def select_samples(
    run: InfluenceRun,
    *,
    drop_harmful: Amount | None = None,
    keep_helpful: Amount | None = None,
    drop_helpful: Amount | None = None,
    drop_suspicious: Amount | None = None,
    group: str | None = None,
) -> SampleSelection:
    """Chooses training samples by their mean influence or their suspicion.

    Exactly one of the four amounts is given. Of equal samples the first ones are taken.

    Args:
        run: complete.
        drop_harmful: leave out so many of the most harmful; fewer, where fewer have a negative mean
            influence.
        keep_helpful: keep so many of the most helpful, whether or not they help at all.
        drop_helpful: leave out so many of the most helpful; fewer, where fewer have a positive mean
            influence. A model that is tuned without them should be worse: a control.
        drop_suspicious: leave out so many of the most suspicious, as `InfluenceRun.suspicion` says.
        group: the test samples over which the mean is taken: one by its id, a group of the run by
            its label, or those that have a value in a column, as "label=bad"; None = all.

    Returns:
        The selection.

    Raises:
        ValueError: if not one amount is given, it is no number or share of the training samples,
            or no test sample is meant by the group.
        StoreError: if the run is not complete, or has not kept what this takes.

    Example:
        >>> select_samples(run, drop_harmful=0.1).kept  # doctest: +SKIP
        array([ 0,  1,  3, ...])
    """
    amounts = {
        "drop_harmful": drop_harmful,
        "keep_helpful": keep_helpful,
        "drop_helpful": drop_helpful,
        "drop_suspicious": drop_suspicious,
    }
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        raise ValueError(f"Give one of {', '.join(amounts)}; got {', '.join(given) or 'none'}.")
    ((rule, amount),) = given.items()
    run.check_complete()
    count = _count(amount, run.plan.n, rule)
    mean = run.mean_influence() if group is None else mean_on(run, positions_of(run, group))
    return _RULES[rule](run, count, mean, "on average" if group is None else f"on {group}")


def _drop_harmful(run: InfluenceRun, count: int, mean: Floats, where: str) -> SampleSelection:
    dropped = largest(-mean, count)
    dropped = dropped[mean[dropped] < 0]
    reason = f"among the {len(dropped)} most harmful {where}"
    return SampleSelection(_others(dropped, mean), dropped, "mean influence", mean, reason)


def _keep_helpful(run: InfluenceRun, count: int, mean: Floats, where: str) -> SampleSelection:
    order = largest(mean, len(mean))
    kept, dropped = np.sort(order[:count]), order[count:][::-1]
    reason = f"not among the {count} most helpful {where}"
    return SampleSelection(kept, dropped, "mean influence", mean, reason)


def _drop_helpful(run: InfluenceRun, count: int, mean: Floats, where: str) -> SampleSelection:
    dropped = largest(mean, count)
    dropped = dropped[mean[dropped] > 0]
    reason = f"among the {len(dropped)} most helpful {where}"
    return SampleSelection(_others(dropped, mean), dropped, "mean influence", mean, reason)


def _drop_suspicious(run: InfluenceRun, count: int, mean: Floats, where: str) -> SampleSelection:
    suspicion = run.suspicion(mean)
    dropped = largest(suspicion, count)
    reason = f"among the {count} most suspicious (influence taken {where})"
    return SampleSelection(_others(dropped, mean), dropped, "suspicion", suspicion, reason)


_RULES: Mapping[str, Callable[[InfluenceRun, int, Floats, str], SampleSelection]] = {
    "drop_harmful": _drop_harmful,
    "keep_helpful": _keep_helpful,
    "drop_helpful": _drop_helpful,
    "drop_suspicious": _drop_suspicious,
}


def _others(dropped: Indices, values: Floats) -> Indices:
    return np.setdiff1d(np.arange(len(values)), dropped)


def _count(amount: Amount, n: int, rule: str) -> int:
    is_share = isinstance(amount, float)
    count = round(amount * n) if is_share and 0 < amount <= 1 else amount
    if isinstance(amount, bool) or isinstance(count, float) or not 0 < count <= n:
        raise ValueError(
            f"{rule} must be a number of the {n:,} training samples, or a share of them such as "
            f"0.3 that makes at least one; got {amount!r}."
        )
    return int(count)


# The test samples that count


def positions_of(run: InfluenceRun, group: str) -> Indices:
    """The test samples that a text means.

    Args:
        run: complete or not.
        group: the id of one, the label of a group of the run, or "column=value".

    Returns:
        Their positions, ascending.

    Raises:
        ValueError: if there are none, with what there is.
    """
    ids = run.test_ids.astype(str)
    found = np.flatnonzero(ids == group)
    columns = {name: values.astype(str) for name, values in run.metadata("test").items()}
    name, _, value = group.partition("=")
    if not len(found) and name in columns:
        found = np.flatnonzero(columns[name] == value)
    if not len(found):
        there = f"{name} is one of {_some(columns[name])}" if name in columns else _some(ids)
        some = f" columns are {', '.join(sorted(columns))};" if columns else ""
        raise ValueError(
            f"No test samples are meant by {group!r}. Give the id of one, or a column and a value, "
            f"such as label=bad:{some} {there if name in columns else f'ids are {there}'}."
        )
    return found


def _some(values: Array) -> str:
    return some(dict.fromkeys(values.tolist()))


def mean_on(run: InfluenceRun, positions: Indices) -> Floats:
    """The mean influence of each training sample on some test samples.

    Args:
        run: complete.
        positions: of test samples, ascending.

    Returns:
        Means, (n,), in float64.

    Raises:
        StoreError: if the run kept only the top scores, or a chunk is missing or damaged.
    """
    if run.top_k is not None:
        raise StoreError(
            f"This run kept the top {run.top_k} of each test sample, and the mean over some of "
            "them takes all scores. Make the run without top_k."
        )
    total = np.zeros(run.plan.n)
    for train in run.plan.train:
        for tile in run.plan.test:
            inside = positions[(positions >= tile.start) & (positions < tile.stop)]
            if len(inside):
                scores = run.store.read("scores", (tile, ..., train))[inside - tile.start]
                summed = scores.sum(1) if scores.ndim == 3 else scores
                total[train] += summed.sum(0, dtype=np.float64)
    return total / len(positions)
