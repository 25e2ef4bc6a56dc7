"""The training data of a run: new to it, or the stored rows of another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any, ClassVar

from pydvl_datainf.errors import DampingError, ModelError, StoreError, StoreExistsError
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.results.arrays import CURVATURE, Array
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.layout import (
    basis_name,
    moments_name,
    moments_of,
    opened,
    sides_name,
)
from pydvl_datainf.results.linked_rows import rows_store
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.record import (
    COMPRESSION,
    PRECONDITIONER,
    compression_entry,
    compression_said,
    is_sum,
)
from pydvl_datainf.results.row_sets import row_sets, rows_each
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.runner.batched_data import BatchIndex
from pydvl_datainf.runner.worker_inputs import Description

_EMPIRICAL = "that of the training gradients"
_PLAIN = "those of the parameters"

CLOSE = 1e-5
"""Up to which λ are the same: a model that was fitted on the same data has them up to rounding."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """Training data whose gradients are computed.

    Args:
        survey: what a first look at it found.
        compression: how rows are compressed, if they are.
    """

    survey: BatchIndex
    compression: Compression | None = None
    rows_in: ClassVar[None] = None
    rows_of: ClassVar[None] = None

    @classmethod
    def of(
        cls, survey: BatchIndex, compression: Compression | None, model: Description
    ) -> "NewRows":
        """With the layers of a model that get side bases.

        Args:
            survey: what a first look at the data found.
            compression: how rows are compressed, if they are.
            model: what is known of it.

        Returns:
            The training data.
        """
        return cls(survey, compression and compression.of_layers(model.linear))

    @property
    def n(self) -> int:
        """The number of samples."""
        return self.survey.n

    @property
    def longest(self) -> int:
        """Samples in the longest batch."""
        return max(self.survey.lengths)

    def fingerprint(self, model: Description) -> dict[str, Any]:
        """What model and training data add to the fingerprint of a run."""
        data = {"training samples": self.n, "training data": self.survey.fingerprint}
        return model.fingerprint | data | compression_entry(self.compression, model.widths, self.n)

    def opened(self) -> "NewRows":
        """As they were before ranks of compressed rows were chosen."""
        return self if self.compression is None else self._with(self.compression.opened())

    def with_ranks(self, ranks: Sequence[int]) -> "NewRows":
        """With the ranks that were chosen."""
        assert self.compression is not None
        return self._with(self.compression.with_ranks(ranks))

    def resumed(self, model: Description, stored: Mapping[str, Any] | None) -> "NewRows":
        """With the ranks that a run has chosen which may go on.

        Args:
            model: what is known of it.
            stored: the attributes of that run; None = there is none.

        Returns:
            It, where nothing was chosen, or something else was asked.
        """
        told = {} if stored is None else stored["fingerprint"].get(COMPRESSION, {})
        if self.compression is None or "ranks" not in told:
            return self
        known = self.with_ranks(told["ranks"])
        is_same = compression_entry(known.compression, model.widths, self.n)[COMPRESSION] == told
        return known if is_same else self

    def _with(self, compression: Compression) -> "NewRows":
        return NewRows(self.survey, compression)

    def columns(self) -> dict[str, Array]:
        """None but the caller's."""
        return {}

    def check_whole(self) -> None:
        """Nothing is read from another run."""

    def copy_norms(self, store: Store, writer: str) -> None:
        """There are none yet."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A complete run whose training rows and damping serve another one.

    Args:
        store: of the run.
        allow_other_places: whether its own rows may be anywhere, if it was a query itself.

    Raises:
        StoreError: if it is not complete, damaged, keeps no rows, is in memory or has no path or
            URL, or used rows of a run that has been replaced.
    """

    store: Stored
    allow_other_places: bool = False
    attributes: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", opened(self.store))
        if not self.store.is_shared:
            raise StoreError(
                f"{self.store} is in this process's memory, where a query cannot find its rows "
                "again. Make the run that is to be queried in a folder."
            )
        if not self.attributes["complete"]:
            raise StoreError(f"{self.store} is not complete. {self.store.to_go_on()}")
        if is_sum(self.attributes):
            raise StoreError(
                f"{self.store} is a sum of runs, which keeps no training rows. Query each of its "
                "parts (InfluenceRun.parts), and add these queries with sum_runs."
            )
        if self.plan.rows != "zarr":
            raise StoreError(
                f"{self.store} keeps no training rows (rows={self.plan.rows!r}). A run that is to "
                'answer further queries is made with rows="zarr".'
            )
        self.rows_of  # noqa: B018 - refuses those of another run

    @property
    def n(self) -> int:
        """The number of training samples."""
        return self.plan.n

    @property
    def longest(self) -> int:
        """Samples that are worked on at once: as many as in the run, for the same bits."""
        return self.plan.step

    @property
    def plan(self) -> Plan:
        """Of the run."""
        return Plan.from_attributes(self.attributes["plan"])

    @property
    def compression(self) -> Compression | None:
        """How the rows are compressed, if they are."""
        return compression_said(self.attributes["fingerprint"])

    @property
    def rows_in(self) -> str:
        """Where the rows are: a run that was itself a query has none of its own."""
        store = rows_store(self.attributes, self.store, self.allow_other_places) or self.store
        if store.path is None and not isinstance(store.location, str):
            raise StoreError(
                f"The run in {store} was opened as a {type(store.location).__name__}, which a "
                "query cannot name to find its rows again. Open it by its path or URL, with "
                "InfluenceRun.open, and query that."
            )
        return str(store)

    @property
    def rows_of(self) -> Any:
        """The fingerprint of the run that is there."""
        return Stored(self.rows_in).attributes["fingerprint"]

    def fingerprint(self, model: Description) -> dict[str, Any]:
        """What both runs have in common.

        Args:
            model: computes the gradients of the queries.

        Returns:
            Entries of a fingerprint.

        Raises:
            ModelError: if the model or its method is another one.
            DampingError: if the model asks for another damping than that of the run, which serves.
        """
        theirs = self.attributes["fingerprint"]
        if model.layers and "layers" not in theirs:
            raise ModelError(
                f"{self.store} keeps no moments of layers, which EK-FAC needs. Query it with its "
                f"own method, {theirs['method']}, or make a run with an EkfacInfluence."
            )
        made, asked = (said or _EMPIRICAL for said in (theirs.get(CURVATURE), model.curvature))
        if made != asked:
            raise ModelError(
                f"The inverse of {self.store} is made of other rows: its curvature is {made}, and "
                f"{asked} is asked for. Query it with the same curvature, labels and label_seed, "
                "or make a run of its own."
            )
        made, asked = (
            said or _PLAIN for said in (theirs.get(PRECONDITIONER), model.preconditioner)
        )
        if made != asked:
            raise ModelError(
                f"The gradients of {self.store} are in other coordinates: its preconditioner is "
                f"{made}, and {asked} is asked for. Query it with the state of the optimizer that "
                "it was made with, or make a run of its own."
            )
        own = {key: value for key, value in model.fingerprint.items() if key != "damping"}
        other = differences({key: theirs[key] for key in own if key in theirs}, own)
        if other:
            raise ModelError(f"{self.store} was computed with another model:{listed(other)}")
        self._check_damping(model, theirs)
        data = ("damping", "training samples", "training data", COMPRESSION)
        return own | {key: theirs[key] for key in data if key in theirs}

    def _check_damping(self, model: Description, theirs: Mapping[str, Any]) -> None:
        known = dict(zip(theirs["blocks"], self.store.read("damping").tolist(), strict=True))
        given = model.fixed_damping
        other = [b for b, λ in given.items() if not isclose(λ, known[b], rel_tol=CLOSE)]
        is_scaled = model.damping_scale != 1 and len(given) < len(known)
        if is_scaled and model.fingerprint["damping"] != theirs["damping"]:
            other += [block for block in known if block not in given]
        if other:
            raise DampingError(
                f"A further query has the damping of the run whose rows it uses, {self.store}, and "
                f"this one asks for another in {len(other)} blocks ({other[0]!r}, for one). Leave "
                "regularization and damping_scale out, or make a run of its own."
            )

    def opened(self) -> "StoredRows":
        """Nothing is to be chosen."""
        return self

    def columns(self) -> dict[str, Array]:
        """Ids and metadata of the training samples."""
        names = self.store.layouts
        wanted = [name for name in names if name == "train" or name.startswith("train_")]
        return {name: self.store.read(name) for name in wanted}

    def check_apart(self, store: Store) -> None:
        """Checks that a query does not replace what it reads.

        Args:
            store: of the query.

        Raises:
            StoreExistsError: if this run, or the one that keeps its rows, is there or within it.
        """
        for needed in (self.store, Stored(self.rows_in)):
            if store.holds(needed):
                raise StoreExistsError(
                    f"{store} holds the run that is asked, or the training rows that it uses: "
                    f"{needed}. Choose another store for the query."
                )

    def check_whole(self) -> None:
        """Checks that damping and norms are sound and rows are there, before a store is made."""
        self.store.check(("damping", "squared_norms"))
        rows = Stored(self.rows_in)
        said = self.attributes["fingerprint"]
        for kind in row_sets(rows_each(said)):
            for name in (kind.scales, *map(kind.name, range(len(self.plan.pieces)))):
                rows.check_present(name)
        if self.compression is not None:
            widths = dict(zip(said["blocks"], said[COMPRESSION]["widths"], strict=True))
            bases = map(basis_name, self.compression.shapes(widths, self.n))
            sides = map(sides_name, self.compression.side_shapes(widths))
            for name in ("outside_norms", *bases, *sides):
                rows.check_present(name)
        for b in moments_of(said["blocks"], said.get("layers", {})):
            rows.check_present(moments_name(b))

    def copy_norms(self, store: Store, writer: str) -> None:
        """Copies the damping and the norms that are not there or not sound, tile by tile.

        Args:
            store: of the query.
            writer: takes the store over before anything is written.
        """
        norms = [("squared_norms", (j, 0), tile) for j, tile in enumerate(self.plan.train)]
        sound = {name: store.sound(name) for name in ("damping", "squared_norms")}
        for name, chunk, where in [("damping", (0,), slice(None)), *norms]:
            if chunk not in sound[name]:
                store.take_over(writer)
                store.write(name, where, self.store.read(name, where))
