"""Random halves of the training data, and the change of loss that scores predict for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pydvl_datainf.errors import PlanError, StoreError
from pydvl_datainf.evaluation import Floats, Indices, Mask, as_array, largest
from pydvl_datainf.results.metadata import digest
from pydvl_datainf.results.reader import InfluenceRun


def checked_count(value: Any, name: str, least: int = 1) -> int:
    """A number that counts, of Python or NumPy.

    Args:
        value: what was given.
        name: of the argument.
        least: what it is at least.

    Returns:
        It as one of Python.

    Raises:
        PlanError: if it is not a whole number, or smaller.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise PlanError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise PlanError(f"{name} must be {least} or more, got {value}.")
    return int(value)


def half_subsets(n: int, count: int, seed: int) -> Mask:
    """Draws random subsets of half the samples, ⌊n/2⌋ each; more of them begin with the same ones.

    Args:
        n: training samples, at least 2.
        count: subsets.
        seed: of the draws.

    Returns:
        Which samples are in each subset, (count, n).

    Raises:
        PlanError: if there are fewer than two samples.
    """
    if n < 2:
        raise PlanError(f"Half of {n} training samples is none; at least 2 are needed.")
    members = np.zeros((count, n), dtype=bool)
    for k, row in enumerate(members):  # each from a generator of its own: more change none
        row[np.random.default_rng((seed, k)).permutation(n)[: n // 2]] = True
    return members


def merged(values: Floats, tolerance: Floats) -> Floats:
    """Makes neighbours equal that differ by no more than a tolerance, and 0 what is as small.

    Args:
        values: (m, M).
        tolerance: of each row, (m, 1).

    Returns:
        The same up to the tolerance; of a run of neighbours each has the value of the smallest.
    """
    order = values.argsort(axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    is_first = np.diff(ordered, axis=1, prepend=-np.inf) > tolerance
    firsts = np.maximum.accumulate(np.where(is_first, np.arange(values.shape[1]), 0), axis=1)
    result = np.empty_like(values)
    np.put_along_axis(result, order, np.take_along_axis(ordered, firsts, axis=1), axis=1)
    result[np.abs(result) <= tolerance] = 0
    return result


@dataclass(frozen=True, slots=True)
class Scores:
    """Influences of n training samples on m test samples, from a run or an array.

    Attributes:
        given: what they come from.
        m: test samples.
        n: training samples.
    """

    given: InfluenceRun | Floats
    m: int
    n: int

    @classmethod
    def of(cls, given: Any) -> Self:
        """Checks what is given.

        Args:
            given: a complete run, or an array (m, n), positive where a sample helps.

        Returns:
            The scores.

        Raises:
            StoreError: if a run is not complete.
            PlanError: if a run kept its top alone, or an array is not of this shape or not finite.
        """
        if isinstance(given, InfluenceRun):
            given.check_complete()
            if given.attrs["fingerprint"]["top_k"] is not None:
                raise PlanError(
                    f"{given.store} kept only the ends of its scores (top_k), and the sum over a "
                    "subset takes all of them. Make the run without top_k."
                )
            return cls(given, given.plan.m, given.plan.n)
        array = as_array(given)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
            raise PlanError(
                "Scores are a run, or an array of numbers with a row for each test sample and a "
                f"column for each training sample, not {array.dtype} of shape {array.shape}."
            )
        if not np.isfinite(array).all():
            raise PlanError(f"{(~np.isfinite(array)).sum()} scores are not finite.")
        return cls(array, *array.shape)

    @property
    def ids(self) -> str:
        """A checksum of the ids of both sides; of an array they are positions."""
        if isinstance(self.given, InfluenceRun):
            return digest({"test": self.given.test_ids, "train": self.given.train_ids})
        return digest({"test": np.arange(self.m), "train": np.arange(self.n)})

    @property
    def checkpoints(self) -> float:
        """What sizes are divided by: the weights' sum of a sum of runs, K where each has 1."""
        if not isinstance(self.given, InfluenceRun) or not self.given.parts:
            return 1.0
        return sum(part.weight for part in self.given.parts)

    def predicted_changes(self, members: Mask) -> Floats:
        """The change of each test loss that the scores predict for training on subsets.

        To first order, training on S in place of all samples weighs the samples of S with 1/|S|
        and the others with 0 in place of 1/n, so the loss of t changes by

            Σ_k (1/n − [k in S]/|S|) score[t, k],

        which for half subsets is −(1/n)(Σ over S − Σ over the rest).

        Args:
            members: which samples are in each subset, (M, n), at least one in each.

        Returns:
            Changes, (m, M), in float64; those that differ by no more than rounding are equal, and 0
            where all scores of a test sample are.

        Raises:
            StoreError: if a run is damaged.
        """
        weights = 1 / self.n - members / members.sum(axis=1, keepdims=True)
        changes, sizes = np.zeros((self.m, len(members))), np.zeros((self.m, 1))
        for tests, trains, values in self._tiles():
            changes[tests] += values @ weights[:, trains].T
            sizes[tests] += np.abs(values).sum(axis=1, keepdims=True)
        # Of n summands with weights of about 1/n; rounding would make an order.
        return merged(changes, np.finfo(np.float64).eps * sizes)

    def most_helpful(self, test: int, k: int) -> Indices:
        """The training samples with the largest scores; of equal ones the first comes first.

        Args:
            test: position of a test sample.
            k: how many, at most n.

        Returns:
            Positions, (k,).
        """
        if not isinstance(self.given, InfluenceRun):
            return largest(self.given[test], k)
        row = self.given.store.read("scores", (slice(test, test + 1),))
        return largest(row.reshape(-1, self.n).sum(axis=0), k)

    def _tiles(self) -> Iterator[tuple[slice, slice, Floats]]:
        if not isinstance(self.given, InfluenceRun):
            yield slice(self.m), slice(self.n), self.given.astype(np.float64)
            return
        plan, store = self.given.plan, self.given.store
        for tests in plan.test:
            for trains in plan.train:
                tile = store.read("scores", (tests, ..., trains)).astype(np.float64)
                if not np.isfinite(tile).all():
                    raise StoreError(f"{store} holds scores that are not finite.")
                yield tests, trains, tile.sum(axis=1) if tile.ndim == 3 else tile
