"""A run in its store, as its user reads it."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import zarr

from pydvl_datainf.errors import StoreError
from pydvl_datainf.evaluation import relative_influence, suspicion_ranks
from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.comparisons import (
    CompressionError,
    approximation_error_in,
    compression_error_in,
)
from pydvl_datainf.results.layout import ENDS, End, has_extra, opened
from pydvl_datainf.results.linked_rows import is_followed, rows_store
from pydvl_datainf.results.medians import column_medians
from pydvl_datainf.results.parts import Part, parts_of
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.ranking import Best
from pydvl_datainf.results.record import (
    APPROXIMATION,
    COMPRESSION,
    EXTRAS,
    NORMALIZE,
    SELF_INFLUENCE,
    TRAINING_LOSS,
    compression_said,
)
from pydvl_datainf.results.stored import Stored


class InfluenceRun:
    """A run in its store. Reading needs neither the model nor the data.

    A run that is replaced while it is open is refused from then on.

    Args:
        store: path, URL or Zarr store of the run.
        allow_other_places: whether the training rows of a further query may be anywhere, over the
            network too; otherwise they are read only in a folder beside the store.

    Raises:
        StoreError: if there is no run, or it is damaged or of another format.
    """

    def __init__(self, store: Any, *, allow_other_places: bool = False):
        self._store = Stored(store)
        self._allow_other_places = allow_other_places
        self.attrs = opened(self._store)

    @classmethod
    def open(cls, store: Any, *, allow_other_places: bool = False) -> Self:
        """Opens the run in a store.

        Args:
            store: path, URL or Zarr store.
            allow_other_places: as for the class.

        Returns:
            The run, complete or not.
        """
        return cls(store, allow_other_places=allow_other_places)

    @property
    def store(self) -> Stored:
        """Where it is, read-only."""
        return self._store

    @property
    def allow_other_places(self) -> bool:
        """Whether training rows of a further query may be anywhere."""
        return self._allow_other_places

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "not complete"
        return f"InfluenceRun({str(self._store)!r}: {self.plan.m} x {self.plan.n}, {state})"

    # What it is

    @property
    def plan(self) -> Plan:
        """How the run is cut."""
        return Plan.from_attributes(self.attrs["plan"])

    @property
    def is_complete(self) -> bool:
        """Whether everything was computed."""
        return bool(self.attrs["complete"])

    @property
    def top_k(self) -> int | None:
        """How many influences on each test sample are kept at either end; None = all."""
        kept: int | None = self.attrs["fingerprint"]["top_k"]
        return kept

    @property
    def parts(self) -> tuple[Part, ...]:
        """The runs that were added, where this one is a sum (`sum_runs`); otherwise none."""
        return parts_of(self.attrs)

    @property
    def damping(self) -> dict[str, float]:
        """λ of each block.

        Raises:
            StoreError: if this is a sum of runs, each of which has its own.
        """
        if self.parts:
            raise StoreError(
                f"{self._store} is a sum of runs, each with its own λ: open one of them, "
                "InfluenceRun(run.parts[0].place).damping."
            )
        names = self._store.read("block").tolist()
        return dict(zip(names, self._store.read("damping").tolist(), strict=True))

    @property
    def residual(self) -> float | None:
        """The largest ‖(H + λ I) x − v‖/‖v‖ of what LiSSA iterated for; None of other methods."""
        told = self.attrs.get("residual")
        return None if told is None else float(told)

    @property
    def widths(self) -> dict[str, int]:
        """Number of parameters of each block."""
        names = self._store.read("block").tolist()
        return dict(zip(names, self._store.read("width").tolist(), strict=True))

    @property
    def energy(self) -> dict[str, float] | None:
        """For each block the share of Σ‖g‖² over the training rows that is kept of them.

        None where they are whole, and of a sum. Of a query it is that of the run whose rows it
        used.

        Raises:
            StoreError: if it is damaged, or that run is gone, was replaced or is not followed.
        """
        if COMPRESSION not in self.attrs["fingerprint"]:
            return None
        shares = self.run_of_rows().store.read("energy").tolist()
        return dict(zip(self.widths, shares, strict=True))

    @property
    def ranks(self) -> dict[str, int] | None:
        """For each block how many numbers of a training row are kept.

        None where rows are whole, of a sum, and where ranks are to be chosen and are not yet.
        """
        compression = compression_said(self.attrs["fingerprint"])
        if compression is None or compression.is_open:
            return None
        return compression.widths(self.widths, self.plan.n)

    @property
    def side_widths(self) -> dict[str, tuple[int, int]]:
        """How many outputs and inputs are kept of the blocks that have side bases."""
        compression = compression_said(self.attrs["fingerprint"])
        return {} if compression is None else compression.kept_of_sides

    @property
    def compression_error(self) -> CompressionError | None:
        """What compression of the training rows changes; None where it is not there.

        In blocks that have side bases rows behind these take the place of whole ones: what side
        bases lose is in `energy`, and not in it.

        Raises:
            StoreError: if it is damaged.
        """
        return compression_error_in(self._store)

    @property
    def test_ids(self) -> Array:
        """Ids of the test samples, or labels of the groups of them, (m,)."""
        return self._store.read("test")

    @property
    def train_ids(self) -> Array:
        """Ids of the training samples, (n,)."""
        return self._store.read("train")

    def metadata(self, side: Literal["test", "train", "run"]) -> dict[str, Any]:
        """What the caller told of the samples or of the run.

        Args:
            side: "test", "train" or "run".

        Returns:
            Columns by name, in the order in which they were given, each of the length of that
            side; or what was told of the run.
        """
        if side == "run":
            return dict(self.attrs["fingerprint"]["run metadata"])
        names = [name for name in self.attrs["columns"] if name.startswith(f"{side}_")]
        return {name.removeprefix(f"{side}_"): self._store.read(name) for name in names}

    def progress(self) -> tuple[int, int]:
        """How many chunks of results are there, and how many there will be."""
        self._store.check_same_run()
        name = "scores" if self.top_k is None else "top"
        if name not in self._store:
            return 0, 0
        return len(self._store.present(name)), self._store.count(name)

    def check(self) -> None:
        """Reads every chunk of every array through its checksum.

        Raises:
            StoreError: if the run is not complete, or an array or chunk is missing or damaged;
                names it.
        """
        self.check_complete()
        names = self.array_names()
        self._store.check(names)
        other = self._store.not_as_consolidated(names)
        if other:
            raise StoreError(
                f"The consolidated metadata in the zarr.json of {self._store} are not those of "
                f"{', '.join(map(repr, other))}.{self._store.repair}"
            )

    # What was found

    @property
    def scores(self) -> "zarr.Array[Any] | None":
        """Influences, (m, n), or (m, blocks, n) by block; None where only the top was kept.

        Positive = helpful. What is not computed yet is NaN.
        """
        self._store.check_same_run()
        return self._store.array("scores") if self.top_k is None else None

    def top(self, k: int, test: Any = None, most: End = "helpful") -> tuple[Array, Array]:
        """The training samples with the largest or the smallest influence.

        Args:
            k: how many; at most n, or the `top_k` of the run.
            test: the id of a test sample, which is its position only where no ids were given; where
                ids are text, 0 finds "0". None = all of them.
            most: "helpful" (largest first) or "harmful" (smallest first).

        Returns:
            Ids and influences of training samples, (k,), or (m, k) for all test samples. Of equal
            ones the first comes first.

        Raises:
            StoreError: if the run is not complete, or damaged.
            ValueError: if there is no such end, or k is not positive or larger than what was kept.
            KeyError: if there is no such test sample.
        """
        self.check_complete()
        if most not in ENDS:
            raise ValueError(f"most must be one of {ENDS}, got {most!r}.")
        kept = self.top_k
        if k < 1 or (kept is not None and k > min(kept, self.plan.n)):
            limit = "" if kept is None else f"; this run kept the top {kept}"
            raise ValueError(f"k must be a positive number, got {k}{limit}.")
        tiles: Iterable[slice] = self.plan.test
        if test is not None:
            position = self._position(test)
            tiles = [slice(position, position + 1)]
        found = [self.top_positions(tile, k, most) for tile in tiles]
        positions, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        ids = self.train_ids[positions]
        return (ids, scores) if test is None else (ids[0], scores[0])

    def top_positions(self, queries: slice, k: int, most: End) -> tuple[Array, Array]:
        """As `top`, for neighbouring queries and in positions along the training data.

        Args:
            queries: from which to which, within a tile of `plan.test`.
            k: how many, at most as many as were kept.
            most: "helpful" or "harmful".

        Returns:
            Positions and influences, (queries, k).

        Raises:
            StoreError: if a chunk is missing or damaged.
        """
        end = ENDS.index(most)
        if self.scores is None:
            where = (queries, end, slice(k))
            positions = self._store.read("top", where)
            if positions.min() < 0 or positions.max() >= self.plan.n:
                raise StoreError(
                    f"'top' in {self._store} holds positions of samples that there are not."
                )
            return positions, self._store.read("top_scores", where)
        best = Best(end, k)
        for wanted in self.plan.train:  # all scores of a tile of queries may take gigabytes
            scores = self._store.read("scores", (queries, ..., wanted))
            best.add_tile(scores.sum(1) if scores.ndim == 3 else scores, wanted.start)
        return best.positions, best.scores

    def mean_influence(self) -> Array:
        """The mean influence of each training sample over all test samples.

        Returns:
            Means, (n,), in float64, in the order of the training data.

        Raises:
            StoreError: if the run is not complete, or damaged.
        """
        self.check_complete()
        return self._store.read("mean_influence")

    def median_influence(self) -> Array:
        """The median influence of each training sample over all test samples, or groups of them.

        A few test samples with large gradients decide a mean, but no median. All scores are read.

        Returns:
            Medians, (n,), in float64, in the order of the training data; of an even number of
            queries, the mean of the two in the middle.

        Raises:
            StoreError: if the run is not complete, is damaged, or kept only the top scores.
        """
        self.check_complete()
        if self.top_k is not None:
            raise StoreError(
                f"This run kept the top {self.top_k} of each test sample, and a median takes all "
                "scores. Make the run without top_k, or use mean_influence()."
            )
        return column_medians(self._store, self.plan)

    def self_influence(self) -> Array:
        """The influence of each training sample on itself.

        Returns:
            Self-influences, (n,), positive up to rounding, in the order of the training data.

        Raises:
            StoreError: if the run is not complete, or has none; for a query also if the run whose
                rows it used is gone, was replaced or is not followed.
        """
        self.check_complete()
        if NORMALIZE in self.attrs["fingerprint"]:
            raise StoreError(
                f"The influences in {self._store} are divided by the norms of training gradients, "
                "and self-influences would be in another unit. Make a run without normalize."
            )
        if self.attrs["rows_in"] is not None:
            return self.run_of_rows().self_influence()
        if not self.has_self_influence:
            how = (
                "It is a sum, and a sum has them where all of its parts do: make theirs, and call "
                "sum_runs again with the same arguments"
                if self.parts
                else "compute_self_influence(run) makes them from the rows that it kept"
                if self.plan.rows == "zarr"
                else "Call run_influences again with the same arguments and self_influence=True; "
                "the scores are not computed again"
            )
            raise StoreError(f"This run has no self-influences. {how}.")
        return self._store.read(SELF_INFLUENCE)

    def training_loss(self) -> Array:
        """The loss of each training sample under the model of the run, by its objective.

        Returns:
            Losses, (n,), in the order of the training data.

        Raises:
            StoreError: if the run is not complete, is older than these losses, or is a sum of runs;
                for a query also if the run whose rows it used is gone, was replaced or is not
                followed.
        """
        self.check_complete()
        if self.attrs["rows_in"] is not None:
            return self.run_of_rows().training_loss()
        if self.parts:
            raise StoreError(
                f"{self._store} is a sum of runs, each with the losses of its own model: open one "
                "of them, InfluenceRun(run.parts[0].place).training_loss()."
            )
        if not self.has_training_loss:
            raise StoreError(
                f"{self._store} has no training losses: an earlier version of this package made "
                "it. Call run_influences again with the same arguments: it takes one forward pass "
                "over the training data, and computes nothing else."
            )
        return self._store.read(TRAINING_LOSS)

    @property
    def has_training_loss(self) -> bool:
        """Whether training losses are there."""
        return self._rows_run_has(TRAINING_LOSS)

    @property
    def rows_are_followed(self) -> bool:
        """Whether training rows are read where the run says: False if elsewhere than is allowed."""
        place = self.attrs["rows_in"]
        return place is None or is_followed(place, self._store, self._allow_other_places)

    @property
    def has_self_influence(self) -> bool:
        """Whether self-influences are there."""
        return NORMALIZE not in self.attrs["fingerprint"] and self._rows_run_has(SELF_INFLUENCE)

    def _rows_run_has(self, name: str) -> bool:
        try:
            rows = self.run_of_rows()
        except StoreError:  # they are gone, or not to be followed
            return False
        told = name in rows.attrs["extras"]  # damaged or not: reading says which
        return told or has_extra(rows.store, name)

    def relative_influence(self, mean: Array | None = None) -> Array:
        """Mean influence / √self-influence of each training sample.

        Barshan, Brunet and Dziugaite, "RelatIF", AISTATS 2020.

        Args:
            mean: influences over some of the test samples, (n,); None = over all of them.

        Returns:
            Relative influences, (n,), in the order of the training data.

        Raises:
            StoreError: as for `self_influence`.
        """
        own = np.maximum(self.self_influence(), 0)  # negative by rounding only
        return relative_influence(self.mean_influence() if mean is None else mean, own)

    def suspicion(self, mean: Array | None = None) -> Array:
        """How suspicious each training label is by its loss and its relative influence together.

        Args:
            mean: as for `relative_influence`.

        Returns:
            Average of the ranks of both, (n,), between 1 and n; the larger, the more suspicious:
            `evaluation.suspicion_ranks`.

        Raises:
            StoreError: as for `self_influence` and `training_loss`.
        """
        return suspicion_ranks(self.training_loss(), self.relative_influence(mean))

    @property
    def approximation_error(self) -> ApproximationError | None:
        """How far the inverse is from the exact one; None where the run did not compare them.

        A sum of runs has none: each of its `parts` has an inverse of its own.

        Raises:
            StoreError: if it is damaged.
        """
        run = InfluenceRun(self._store.location)  # a later call may have compared anew
        self._store.check_same_run()
        store = run._store
        if APPROXIMATION not in run.array_names() or not store.present(APPROXIMATION):
            return None
        return approximation_error_in(store)

    def to_xarray(self) -> Any:
        """The arrays as an `xarray.Dataset`, read lazily.

        Returns:
            The dataset, with the ids as coordinates.

        Raises:
            ModuleNotFoundError: if xarray is not installed.
            StoreError: if the metadata of an array are missing or damaged.
        """
        try:
            import xarray
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "to_xarray needs xarray: pip install pydvl-datainf[xarray]"
            ) from None
        self.array_names()  # checks them
        return xarray.open_zarr(self._store.location, consolidated=False)

    # What is there

    def array_names(self) -> list[str]:
        """The arrays that this run must have, or has by now.

        Returns:
            Names, sorted.

        Raises:
            StoreError: if one is missing, or not laid out as the run says.
        """
        self._store.check_same_run()
        extras = [n for n in EXTRAS if n in self._store or n in self.attrs["extras"]]
        names = [n for n in self._store.layouts if n not in EXTRAS] + extras
        if not self.is_complete:
            names = [name for name in names if name in self._store]
        for name in names:
            self._store.array(name)
        return sorted(names)

    def check_complete(self) -> None:
        """Refuses to read what only a complete run has.

        Raises:
            StoreError: if it is not complete.
        """
        self._store.check_same_run()
        if not self.is_complete:
            there, all_chunks = self.progress()
            raise StoreError(
                f"{self._store} is not complete ({there} of {all_chunks} chunks of results). "
                f"{self._store.to_go_on()}"
            )

    def _position(self, test: Any) -> int:
        ids: list[Any] = self.test_ids.tolist()
        is_number = isinstance(test, int | np.integer) and not isinstance(test, bool)
        named = str(test) if is_number and isinstance(ids[0], str) else test
        if named not in ids:
            some = ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")
            raise KeyError(
                f"No test sample has the id {test!r}; there are {some}. test is an id of test_ids, "
                "not a position."
            )
        return ids.index(named)

    def run_of_rows(self) -> "InfluenceRun":
        """The run whose rows this one used: itself, but for a query.

        Returns:
            The run.

        Raises:
            StoreError: if it is gone, was replaced or is not followed.
        """
        rows = rows_store(self.attrs, self._store, self._allow_other_places)
        return self if rows is None else InfluenceRun(rows)
