"""Influences of any number of samples, in a store that survives whatever stops the run."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self

import numpy as np
import zarr
from distributed import Client

from pydvl_datainf.errors import StoreError
from pydvl_datainf.evaluation import relative_influence
from pydvl_datainf.influence.approximation import ApproximationError
from pydvl_datainf.inverse.methods import INVERSES
from pydvl_datainf.results.layout import ENDS, comparison_in, extras_in, has_extra, opened
from pydvl_datainf.results.linked_rows import is_followed, rows_store
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.ranking import Best
from pydvl_datainf.results.record import APPROXIMATION, EXTRAS, SELF_INFLUENCE
from pydvl_datainf.results.store import REPAIR, Array, Store
from pydvl_datainf.runner.batched_data import BatchIndex
from pydvl_datainf.runner.executors import executor_for
from pydvl_datainf.runner.job import Job
from pydvl_datainf.runner.launch import launch
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.tasks import all_self_influences
from pydvl_datainf.runner.train_side import StoredRows
from pydvl_datainf.runner.worker_inputs import Built


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
        self._store = Store(store, read_only=True)
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

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "not complete"
        return f"InfluenceRun({str(self._store)!r}: {self.plan.m} x {self.plan.n}, {state})"

    # What it is

    @property
    def plan(self) -> Plan:
        """How the run is cut."""
        return Plan(**self.attrs["plan"])

    @property
    def is_complete(self) -> bool:
        """Whether everything was computed."""
        return bool(self.attrs["complete"])

    @property
    def damping(self) -> dict[str, float]:
        """λ of each block."""
        names = self._store.read("block").tolist()
        return dict(zip(names, self._store.read("damping").tolist(), strict=True))

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
            Columns by name, each of the length of that side; or what was told of the run.
        """
        if side == "run":
            return dict(self.attrs["fingerprint"]["run metadata"])
        names = sorted(name for name in self._store.layouts if name.startswith(f"{side}_"))
        return {name.removeprefix(f"{side}_"): self._store.read(name) for name in names}

    def progress(self) -> tuple[int, int]:
        """How many chunks of results are there, and how many there will be."""
        self._store.check_same_run()
        name = "scores" if self.attrs["fingerprint"]["top_k"] is None else "top"
        names = [name for name in ("factors", name) if name in self._store]
        there = sum(len(self._store.present(name)) for name in names)
        return there, sum(self._store.count(name) for name in names)

    def check(self) -> None:
        """Reads every chunk of every array through its checksum.

        Raises:
            StoreError: if the run is not complete, or an array or chunk is missing or damaged;
                names it.
        """
        self._check_complete()
        names = self._names()
        self._store.check(names)
        other = self._store.not_as_consolidated(names)
        if other:
            raise StoreError(
                f"The consolidated metadata in the zarr.json of {self._store} are not those of "
                f"{', '.join(map(repr, other))}.{REPAIR}"
            )

    # What was found

    @property
    def scores(self) -> "zarr.Array[Any] | None":
        """Influences, (m, n), or (m, blocks, n) by block; None where only the top was kept.

        Positive = helpful. What is not computed yet is NaN.
        """
        self._store.check_same_run()
        return self._store.array("scores") if self.attrs["fingerprint"]["top_k"] is None else None

    def top(
        self, k: int, test: Any = None, most: Literal["helpful", "harmful"] = "helpful"
    ) -> tuple[Array, Array]:
        """The training samples with the largest or the smallest influence.

        Args:
            k: how many; at most n, or the `top_k` of the run.
            test: the id of a test sample; None = all of them.
            most: "helpful" (largest first) or "harmful" (smallest first).

        Returns:
            Ids and influences of training samples, (k,), or (m, k) for all test samples. Of equal
            ones the first comes first.

        Raises:
            StoreError: if the run is not complete, or damaged.
            ValueError: if there is no such end, or k is not positive or larger than what was kept.
            KeyError: if there is no such test sample.
        """
        self._check_complete()
        if most not in ENDS:
            raise ValueError(f"most must be one of {ENDS}, got {most!r}.")
        kept = self.attrs["fingerprint"]["top_k"]
        if k < 1 or (kept is not None and k > min(kept, self.plan.n)):
            limit = "" if kept is None else f"; this run kept the top {kept}"
            raise ValueError(f"k must be a positive number, got {k}{limit}.")
        tiles = (
            [slice(i, i + 1) for i in [self._position(test)]]
            if test is not None
            else self.plan.test
        )
        found = [self._top_of(tile, k, ENDS.index(most)) for tile in tiles]
        positions, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        ids = self.train_ids[positions]
        return (ids, scores) if test is None else (ids[0], scores[0])

    def mean_influence(self) -> Array:
        """The mean influence of each training sample over all test samples.

        Returns:
            Means, (n,), in float64, in the order of the training data.

        Raises:
            StoreError: if the run is not complete, or damaged.
        """
        self._check_complete()
        return self._store.read("mean_influence")

    def self_influence(self) -> Array:
        """The influence of each training sample on itself.

        It is read where the run computed it, and computed from the rows where the run kept them,
        which takes n² D multiplications; the result is then kept in the store.

        Returns:
            Self-influences, (n,), positive up to rounding, in the order of the training data.

        Raises:
            StoreError: if the run is not complete, or neither computed them nor kept rows; for a
                query also if the run whose rows it used is gone, was replaced or is not followed.
        """
        self._check_complete()
        if self.attrs["rows_in"] is not None:
            return self._run_of_rows().self_influence()
        if not has_extra(self._store, SELF_INFLUENCE):
            if self.plan.rows != "zarr":
                raise StoreError(
                    "This run has no self-influences, and kept no rows to compute them from. Call "
                    "run_influences again with the same arguments and self_influence=True; the "
                    "scores are not computed again."
                )
            return self._computed_self_influence()
        return self._store.read(SELF_INFLUENCE)

    @property
    def rows_are_followed(self) -> bool:
        """Whether training rows are read where the run says: False if elsewhere than is allowed."""
        place = self.attrs["rows_in"]
        return place is None or is_followed(place, self._store, self._allow_other_places)

    @property
    def has_self_influence(self) -> bool:
        """Whether self-influences are there; if not, they take long or cannot be computed."""
        try:
            rows = self._run_of_rows()
        except StoreError:  # they are gone, or not to be followed
            return False
        return SELF_INFLUENCE in rows._names()

    def relative_influence(self) -> Array:
        """Mean influence / √self-influence of each training sample.

        Barshan, Brunet and Dziugaite, "RelatIF", AISTATS 2020.

        Returns:
            Relative influences, (n,), in the order of the training data.

        Raises:
            StoreError: as for `self_influence`.
        """
        return relative_influence(self.mean_influence(), self.self_influence())

    @property
    def approximation_error(self) -> ApproximationError | None:
        """How far the inverse is from the exact one; None where the run did not compare them."""
        run = InfluenceRun(self._store.location)  # a later call may have compared anew
        self._store.check_same_run()
        store = run._store
        if APPROXIMATION not in run._names() or not store.present(APPROXIMATION):
            return None
        told = comparison_in(store)
        if told is None:
            raise StoreError(f"The metadata of '{APPROXIMATION}' in {store} are damaged.{REPAIR}")
        errors, cosines = store.read(APPROXIMATION)
        return ApproximationError(
            blocks=tuple(store.read("block").tolist()),
            errors=errors,
            cosines=cosines,
            widths=store.read("width"),
            damping=store.read("damping"),
            n=told["n"],
            m=told["m"],
            score_error=told["score_error"],
            rank_correlation=told["rank_correlation"],
        )

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
        self._names()  # checks them
        return xarray.open_zarr(self._store.location, consolidated=False)

    # Further queries

    def query(
        self,
        influence: Built,
        test: Any,
        store: Any,
        *,
        client: Client | str | None = None,
        n_jobs: int | None = None,
        tile: int | None = None,
        memory: int | str = "2GiB",
        top_k: int | None = None,
        by_block: bool = False,
        query_groups: Sequence[Any] | None = None,
        ids: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> "InfluenceRun":
        """Computes the influence of this run's training samples on other test samples.

        The kept rows and the damping of this run serve again: the training data is not read.

        Args:
            influence: the same model, or its builder; its damping does not matter.
            test: as in `run_influences`.
            store: of the new run; neither this one nor the one whose rows it used is replaced.
            client: as in `run_influences`.
            n_jobs: as in `run_influences`.
            tile: test samples in a tile.
            memory: as in `run_influences`.
            top_k: as in `run_influences`.
            by_block: as in `run_influences`.
            query_groups: as in `run_influences`.
            ids: of the test samples.
            metadata: of the test samples.
            overwrite: as in `run_influences`.
            progress: as in `run_influences`.

        Returns:
            The new run. It refers to this run's store, which must stay where it is.
        """
        wishes = RunOptions(
            memory=memory,
            tile=(tile, None),
            top_k=top_k,
            by_block=by_block,
            query_groups=query_groups,
            ids=None if ids is None else {"test": ids},
            metadata=None if metadata is None else {"test": metadata},
            overwrite=overwrite,
        )
        self._store.check_same_run()
        parent = StoredRows(self._store, self._allow_other_places)
        executor = executor_for(client, n_jobs, progress)
        try:
            launch(influence, test, parent, Store(store), wishes, executor)
        finally:
            executor.close()
        return InfluenceRun(store, allow_other_places=True)  # the caller named it himself

    # Small print

    def _names(self) -> list[str]:
        """The arrays that this run must have, or has by now, all of them laid out as it says."""
        self._store.check_same_run()
        extras = [n for n in EXTRAS if n in self._store or n in self.attrs["extras"]]
        names = [n for n in self._store.layouts if n not in EXTRAS] + extras
        if not self.is_complete:
            names = [name for name in names if name in self._store]
        for name in names:
            self._store.array(name)
        return names

    def _check_complete(self) -> None:
        self._store.check_same_run()
        if not self.is_complete:
            there, all_chunks = self.progress()
            raise StoreError(
                f"{self._store} is not complete ({there} of {all_chunks} chunks of results). Call "
                "run_influences again with the same arguments to go on."
            )

    def _position(self, test: Any) -> int:
        found = np.flatnonzero(self.test_ids == test)
        if not len(found):
            raise KeyError(f"No test sample has the id {test!r}; they are {self.test_ids[:5]} ...")
        return int(found[0])

    def _top_of(self, queries: slice, k: int, end: int) -> tuple[Array, Array]:
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

    def _run_of_rows(self) -> "InfluenceRun":
        """The run whose rows this one used: itself, but for a query."""
        rows = rows_store(self.attrs, self._store, self._allow_other_places)
        return self if rows is None else InfluenceRun(rows)

    def _computed_self_influence(self) -> Array:
        """From the stored rows; kept where the store can be written."""
        plan = self.plan
        names, widths = self._store.read("block").tolist(), self._store.read("width").tolist()
        if min(widths) < 1 or sum(widths) != plan.n_parameters or len(set(names)) < len(names):
            raise StoreError(f"'block' and 'width' in {self._store} are not those of a run.")
        dtype = self.attrs["fingerprint"]["dtype"]
        place = self._store.location
        inverse = INVERSES[self.attrs["fingerprint"]["method"]]
        by_name, none = dict(zip(names, widths, strict=True)), BatchIndex((), ())
        job = Job(plan, place, place, by_name, dtype, inverse, none, _store=self._store)
        values, store = all_self_influences(job), Store(place)
        with suppress(StoreError), store.locked():
            if store.attributes != self.attrs:  # another call has replaced the run or works on it
                return values
            store.layouts = self._store.layouts
            store.require(SELF_INFLUENCE, *store.layouts[SELF_INFLUENCE])
            store.write(SELF_INFLUENCE, ..., values)
            store.finish(extras_in(store))
        return values


def run_influences(
    influence: Built,
    test: Any,
    train: Any,
    store: Any,
    *,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    tile: tuple[int | None, int | None] | None = None,
    memory: int | str = "2GiB",
    rows: Literal["memory", "zarr", "recompute", "auto"] = "auto",
    top_k: int | None = None,
    by_block: bool = False,
    query_groups: Sequence[Any] | None = None,
    ids: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    self_influence: bool = False,
    exact_sample: int | Literal["auto"] = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> InfluenceRun:
    """Computes the influence of each training sample on each test sample, into a Zarr store.

    A run that was stopped, however, goes on from what is in the store when the same call is made
    again, and ends, on CPUs, with the same bits as one that was not. Training gradients that were
    in memory alone are computed again.

    Args:
        influence: a `DataInfInfluence`, or a picklable callable without arguments that builds one
            (called once in each process; for models too large to send). If it is fitted, its λ are
            used as they are: it must have been fitted on this training data, of which only the
            number of samples is checked.
        test: a map-style dataset, a DataLoader over one in fixed order, a list of batches, one
            batch, or a pair of Dask arrays (one chunk along the samples is a batch).
        train: the same of the n training samples.
        store: where results go: a path, a URL that fsspec knows, or a Zarr store.
        client: a Dask client, or the address of a scheduler: the work is done by its workers, each
            with one thread, which must see the store under the same path.
        n_jobs: worker processes on this machine, as in joblib; None = this process, unless a
            surrounding `joblib.parallel_config` says otherwise.
        tile: (test, train) samples in a chunk of scores; None = chosen.
        memory: what our arrays may take in each process, in bytes or as text; the model, its
            activations and the data come on top.
        rows: gradients of training samples are kept in "memory", or in the store in half precision
            ("zarr"), or computed again ("recompute"); "auto" takes the first that fits, but keeps
            no more than 2,000 gradients in memory where the disk has room: a stop loses them.
        top_k: keep only the k largest and k smallest influences on each test sample.
        by_block: keep the influences of each block.
        query_groups: a label for each test sample: the mean influence on each group is computed,
            at the cost of one test sample a group.
        ids: for "test" and "train", or one of them, unique integers or strings.
        metadata: for "test" and "train" columns such as labels and texts, and for "run" anything
            that JSON holds, nested at most 100 deep; each may be left out.
        self_influence: compute self-influences too. Where rows are recomputed, this computes the
            rows of all samples once for every half of `memory` that they fill.
        exact_sample: over about so many training samples, and up to 32 test samples, compare the
            inverse with the exact one, for `InfluenceRun.approximation_error`. "auto" = 256, or
            fewer where `memory` is too small, or none; 0 = do not. Exact and plain
            Hessian-free influences approximate nothing, so that nothing is compared.
        overwrite: replace the run in the store, but for one that this very call had begun, with
            the same versions of the packages, when it was stopped: that goes on.
        progress: show a bar for each stage.

    Returns:
        The complete run.

    Raises:
        StoreError: if the store is in use, damaged beyond repair, full or read-only.
        StoreExistsError: if it holds another run or something else.
        PlanError: if nothing fits in memory, or arguments do not go together.
        SourceError: if data has no fixed order, or changes between two reads.
        ClusterError: if the workers cannot be reached, do not suit, or are lost.
        ModelError: if the model is unsupported, or a gradient is not finite; names the sample.
        DampingError: if no λ can be chosen, or scores overflow.
    """
    wishes = RunOptions(
        memory=memory,
        tile=tile,
        rows=rows,
        top_k=top_k,
        by_block=by_block,
        query_groups=query_groups,
        ids=ids,
        metadata=metadata,
        self_influence=self_influence,
        exact_sample=exact_sample,
        overwrite=overwrite,
    )
    place = Store(store)
    executor = executor_for(client, n_jobs, progress)
    try:
        launch(influence, test, train, place, wishes, executor)
    finally:
        executor.close()
    return InfluenceRun(store)
