"""Losses after retraining, kept: made once, used for every method and every λ.

A bank is a Zarr group of its own, specified in docs/store-format.md. The losses of one retraining
are one chunk, written whole; what is there and sound was done, and there is no other book-keeping.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from pydvl_datainf.errors import PlanError, StoreError, StoreExistsError
from pydvl_datainf.evaluation import Floats, Mask
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.store import Store
from pydvl_datainf.yardstick.subsets import checked_count, half_subsets

FORMAT = "pydvl-datainf retrainings"
FORMAT_VERSION = 1

MEMBERS, HALVES, FULL = "members", "losses", "full_losses"
"""The arrays: who is in each subset, losses after training on it, and on all samples."""

REMOVED, REMOVALS = "removed", "removal_losses"
"""Further ones: who was removed, and losses after training on the others."""

Cell = tuple[int, int]
"""A subset, a removal, or 0 for all samples; and a seed."""


class Bank:
    """Retrained losses of m test samples, in a place of their own.

    Args:
        location: a path, a URL that fsspec knows, or a Zarr store.
        n: training samples.
        m: test samples.
        ids: a checksum of the ids of both.
        recipe: how models are retrained, as text: in words, or JSON.
        subset_seed: of the draws of subsets.

    Raises:
        PlanError: if the recipe is no text, the seed no number, or the location empty.
        StoreError: if there is a bank of other data, another recipe or another format.
        StoreExistsError: if there is something else.
    """

    def __init__(
        self, location: Any, *, n: int, m: int, ids: str, recipe: str = "", subset_seed: int = 0
    ):
        if not isinstance(recipe, str):
            raise PlanError(
                f"recipe must be text, got a {type(recipe).__name__}. Pass json.dumps(recipe)."
            )
        subset_seed = checked_count(subset_seed, "subset_seed", least=0)
        if isinstance(location, str) and not location.strip():  # would be the working directory
            raise PlanError("bank is empty. Say where to keep the losses, such as a path.")
        self.store = Store(location)
        self.store.maker = "validate"
        self.n, self.m, self.subset_seed = n, m, subset_seed
        self.fingerprint: dict[str, Any] = {
            "training samples": n,
            "test samples": m,
            "ids": ids,
            "recipe": recipe,
            "subset seed": subset_seed,
        }
        found = attributes_in(self.store)
        if found is not None:
            self._check_same(found)

    @classmethod
    def open(cls, location: Any) -> "Bank":
        """Opens a bank as it is, whatever its recipe.

        Args:
            location: where it is.

        Returns:
            The bank.

        Raises:
            StoreError: if there is none.
        """
        found = attributes_in(Store(location))
        if found is None:
            raise StoreError(f"There are no retrainings in {Store(location)}; validate makes them.")
        told = found["fingerprint"]
        return cls(
            location,
            n=told["training samples"],
            m=told["test samples"],
            ids=told["ids"],
            recipe=told["recipe"],
            subset_seed=told["subset seed"],
        )

    def __repr__(self) -> str:
        return f"Bank({str(self.store)!r}: {self.m} test, {self.n} training samples)"

    def _check_same(self, found: dict[str, Any]) -> None:
        lines = differences(_spread(found["fingerprint"]), _spread(self.fingerprint))
        if lines:
            raise StoreError(
                f"The retrainings in {self.store} are others than those asked for:{listed(lines)}\n"
                "Nothing was changed there. Choose another place for the bank, or ask for the same."
            )

    # Writing

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the bank where there is none, and keeps other calls off it.

        Yields:
            Nothing.
        """
        with self.store.locked():
            found = attributes_in(self.store)  # another call may have made one
            if found is None:
                marks = {"format": FORMAT, "format_version": FORMAT_VERSION}
                attributes = {**marks, "fingerprint": self.fingerprint}
                zarr.create_group(self.store.location, zarr_format=3, attributes=attributes)
            else:
                self._check_same(found)
            yield

    def extend(self, subsets: int, seeds: int) -> Mask:
        """Makes room for so many subsets and seeds; what is there stays.

        Args:
            subsets: how many.
            seeds: of each.

        Returns:
            Which training samples are in each subset, (subsets, n).

        Raises:
            StoreError: if the subsets in the bank are not those that its seed gives now.
        """
        members = self.members(subsets)
        self._require(HALVES, (subsets, seeds, self.m), "float64", ("subset", "seed", "test"))
        self._require(FULL, (1, seeds, self.m), "float64", ("all", "seed", "test"))
        self._require(MEMBERS, (subsets, self.n), "bool", ("subset", "train"))
        for k in {*range(subsets)} - {k for k, _ in self.store.sound(MEMBERS)}:
            self.store.write(MEMBERS, slice(k, k + 1), members[k : k + 1])
        same = (self.store.read(MEMBERS, slice(subsets)) == members).all(axis=1)
        if not same.all():
            raise StoreError(
                f"Subset {same.argmin()} in {self.store} is not what its seed gives with this "
                "version of NumPy. Use the one that made the bank, or choose another place."
            )
        return members

    def add_removals(self, removed: Mask, seeds: int) -> list[int]:
        """Makes room for retrainings without some samples, where there is none.

        Args:
            removed: which samples are left out each time, (r, n).
            seeds: of each.

        Returns:
            Where each is along the arrays `REMOVED` and `REMOVALS`.
        """
        self._require(REMOVED, (1, self.n), "bool", ("removal", "train"))
        known = {self.store.read(REMOVED, k).tobytes(): k for k, _ in self.store.sound(REMOVED)}
        # After whatever is there, losses of a damaged row included.
        there = self.store.present(REMOVED) | self.store.present(REMOVALS)
        free = count(1 + max((chunk[0] for chunk in there), default=-1))
        new = {}
        for row in removed:
            if row.tobytes() not in known:
                known[row.tobytes()] = k = next(free)
                new[k] = row
        size = 1 + max(known.values())
        self._require(REMOVED, (size, self.n), "bool", ("removal", "train"))
        self._require(REMOVALS, (size, seeds, self.m), "float64", ("removal", "seed", "test"))
        for k, row in new.items():
            self.store.write(REMOVED, slice(k, k + 1), row[None])
        return [known[row.tobytes()] for row in removed]

    def _require(
        self, name: str, shape: tuple[int, ...], dtype: str, dimensions: tuple[str, ...]
    ) -> None:
        """An array at least so large, with room for what is there, be its metadata damaged."""
        there = [chunk for chunk in self.store.present(name) if len(chunk) == len(shape)]
        ends = [1 + max(along) for along in zip(*there, strict=True)] or [0] * len(shape)
        sides = tuple(map(max, shape[:-1], ends[:-1]))
        chunks = (*(1 for _ in sides), shape[-1])
        self.store.require(name, (*sides, shape[-1]), chunks, dtype, dimensions)

    def write(self, name: str, cell: Cell, losses: Floats) -> None:
        """Keeps the losses of one retraining.

        Args:
            name: `HALVES`, `FULL` or `REMOVALS`.
            cell: subset or removal, and seed.
            losses: (m,), finite.
        """
        k, s = cell
        self.store.write(name, (slice(k, k + 1), slice(s, s + 1)), losses[None, None])

    # Reading

    def done(self, name: str) -> set[Cell]:
        """The retrainings that are there and sound.

        Args:
            name: `HALVES`, `FULL` or `REMOVALS`.

        Returns:
            Subsets and seeds.
        """
        return {(k, s) for k, s, _ in self.store.sound(name)}

    def members(self, subsets: int) -> Mask:
        """Which training samples are in each of the first subsets, (M, n)."""
        return half_subsets(self.n, subsets, self.subset_seed)

    def losses(self, subsets: int, seeds: int) -> Floats:
        """What was kept of the first subsets.

        Args:
            subsets: how many.
            seeds: of each.

        Returns:
            Losses, (M, S, m).

        Raises:
            StoreError: if a retraining is missing or damaged.
        """
        return self.store.read(HALVES, (slice(subsets), slice(seeds)))

    def removal_losses(self, places: Sequence[int], seeds: int) -> Floats:
        """What was kept of retrainings without some samples.

        Args:
            places: of them, as `add_removals` gave them.
            seeds: of each.

        Returns:
            Losses, (r, S, m).

        Raises:
            StoreError: if one is missing or damaged.
        """
        return np.stack([self.store.read(REMOVALS, (k, slice(seeds))) for k in places])

    def full_losses(self, seeds: int) -> Floats:
        """Losses after retraining on all samples.

        Args:
            seeds: how many.

        Returns:
            Losses, (S, m).

        Raises:
            StoreError: if one is missing or damaged.
        """
        losses: Floats = self.store.read(FULL, (0, slice(seeds)))
        return losses


def _spread(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe that is a JSON object its single settings, so that it shows which differs."""
    try:
        recipe = json.loads(fingerprint["recipe"])
    except ValueError:
        return fingerprint
    return fingerprint | {"recipe": None} | dict(_leaves("recipe", recipe))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{name}: {key}", inner)


def complete_subsets(done: Collection[Cell], seeds: int) -> int:
    """How many subsets, from the first, were retrained on with each of some seeds."""
    return next(k for k in count() if any((k, s) not in done for s in range(seeds)))


def seeds_of_first(done: Collection[Cell]) -> int:
    """With how many seeds, from the first, the first subset was retrained on."""
    return next(s for s in count() if (0, s) not in done)


def attributes_in(store: Store) -> dict[str, Any] | None:
    """The attributes of a bank.

    Args:
        store: perhaps vacant.

    Returns:
        They, checked; None where there is nothing.

    Raises:
        StoreError: if it is of another format, or damaged.
        StoreExistsError: if there is something else.
    """
    if store.path is not None and _is_vacant(store.path):
        return None
    try:
        found: Any = store.group.attrs.asdict()
    except StoreError as error:
        if store.path is None and isinstance(error.__cause__, GroupNotFoundError):
            return None
        raise StoreExistsError(
            f"{store} holds something that is no bank of retrainings, or its zarr.json is damaged: "
            f"{error} Choose another place, or put back a copy of that file."
        ) from error
    if found.get("format") != FORMAT:
        raise StoreExistsError(
            f"{store} holds something that is no bank of retrainings. Choose another place."
        )
    if found.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{store} has format version {found.get('format_version')}; this version of the "
            f"package reads {FORMAT_VERSION}."
        )
    _check_fingerprint(store, found.get("fingerprint"))
    return dict(found)


def _is_vacant(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise StoreExistsError(f"{path} is a file. Choose another place for the bank.")
    left = path.iterdir() if path.exists() else ()
    return all(entry.name.endswith(".partial") for entry in left)  # a writer was killed at it


_KINDS = {
    "training samples": int,
    "test samples": int,
    "ids": str,
    "recipe": str,
    "subset seed": int,
}


def _check_fingerprint(store: Store, told: Any) -> None:
    is_whole = isinstance(told, dict) and told.keys() == _KINDS.keys()
    if not is_whole or any(type(told[name]) is not kind for name, kind in _KINDS.items()):
        raise StoreError(
            f"The attributes of {store} are damaged: fingerprint is {told!r:.200}. Put back a copy "
            "of its zarr.json, or delete the bank."
        )
