"""What `fit` learns of the training data and of the model."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.fingerprint import DataChecksum, differences, fingerprint
from pydvl_datainf.gradients.compressed import CompressedRows, Weigh, read_compressed
from pydvl_datainf.gradients.sources import (
    MemoryRows,
    Reader,
    RowsKept,
    RowSource,
    has_fixed_order,
    read_rows,
    sum_norms,
)
from pydvl_datainf.gradients.supported import preserved_rng
from pydvl_datainf.inverse.compression import Compression, lifted, projected
from pydvl_datainf.inverse.damping import SquaredNorms, resolve_damping
from pydvl_datainf.inverse.method import Makes, solve
from pydvl_datainf.vectors import BlockVectors


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The rows of the training samples, what was computed from them, and where they came from.

    Args:
        source: of the rows.
        norms: sums of the squared norms of the rows, where λ needed them.
        damping: λ of each block.
        device: of the rows.
        model: checksums of the model's tensors.
        data: checksums of the data's tensors.
        has_fixed_order: whether every pass yields the samples in one order.
        curvature: of the rows that the inverse is made of, where they are others.
    """

    source: RowSource
    norms: SquaredNorms | None
    damping: Mapping[str, float]
    device: torch.device
    model: Mapping[str, int]
    data: Mapping[str, int]
    has_fixed_order: bool
    curvature: RowSource | None = None

    @classmethod
    def read(
        cls,
        reader: Reader,
        model: nn.Module,
        keep: RowsKept | Compression,
        given: Mapping[str, float],
        widths: Mapping[str, int],
        dtype: torch.dtype,
        scale: float = 1.0,
        curvature: Reader | None = None,
    ) -> "Fitted":
        """Reads the training data: counts it, chooses λ, and keeps rows where they fit.

        Args:
            reader: of the training data.
            model: whose gradients are read.
            keep: what happens to the rows, or how they are compressed.
            given: λ of the blocks that have one.
            widths: d_l of all blocks.
            dtype: of the rows.
            scale: of λ that are chosen.
            curvature: reads the rows that the inverse is made of, where they are others.

        Returns:
            What was found.
        """
        need_norms = len(given) < len(widths)
        before = fingerprint(model)
        source, norms, data = _read(reader, keep, need_norms=need_norms)
        after = fingerprint(model)
        if _changed_by_itself(before, after):  # as weights do that are quantised at first use
            before = after
            del source  # two at once would take twice the memory
            source, norms, data = _read(reader, keep, need_norms=need_norms)
            after = fingerprint(model)
        _check_own_buffers(before, after)
        other = None
        if curvature is not None:  # λ follows its rows, which may be more than samples
            other, norms, _ = _read(curvature, keep, need_norms=True)
        damping = resolve_damping(given, norms, widths, dtype, scale)
        fixed_order = has_fixed_order(reader.data)
        return cls(source, norms, damping, reader.device, after, data.sums, fixed_order, other)

    def damped(
        self,
        given: Mapping[str, float],
        widths: Mapping[str, int],
        dtype: torch.dtype,
        scale: float = 1.0,
    ) -> "Fitted":
        """The same rows under another damping; they are read once more where norms are missing."""
        norms = self.norms
        if norms is None and len(given) < len(widths):
            with preserved_rng(self.device):
                norms = sum_norms(self.curvature or self.source)
        damping = resolve_damping(given, norms, widths, dtype, scale)
        return replace(self, norms=norms, damping=damping)

    def to(self, device: torch.device) -> "Fitted":
        """The same on another device."""
        curvature = None if self.curvature is None else self.curvature.to(device)
        return replace(self, source=self.source.to(device), device=device, curvature=curvature)

    def changes(self, model: nn.Module) -> list[str]:
        """Names of the model's tensors that are not as they were."""
        return differences(self.model, fingerprint(model))

    @property
    def bases(self) -> BlockVectors:
        """Of the blocks whose rows are coordinates."""
        source = self.source
        return source.bases if isinstance(source, CompressedRows) else OrderedDict()

    def energy(self, blocks: Iterable[str]) -> dict[str, float]:
        """For each block the share of the rows' squared norms that lies in its basis."""
        if not isinstance(self.source, CompressedRows) or self.norms is None:
            return dict.fromkeys(blocks, 1.0)
        outside = self.source.sum_outside()
        whole = self.norms.sums
        return {b: 1 - outside[b] / whole[b] if whole[b] else 1.0 for b in blocks}

    def ranks(self, widths: Mapping[str, int]) -> dict[str, int]:
        """For blocks of these widths how many numbers of a row are kept."""
        return self.source.ranks if isinstance(self.source, CompressedRows) else dict(widths)

    def projected(self, vectors: BlockVectors) -> BlockVectors:
        """Vectors as the rows are: their coordinates, or themselves."""
        return projected(vectors, self.bases, torch.float64)

    def lifted(self, vectors: BlockVectors) -> BlockVectors:
        """Whole vectors of what is as the rows are."""
        return lifted(vectors, self.bases)

    def solve(
        self,
        make: Makes,
        vectors: BlockVectors,
        residuals: dict[str, Tensor] | None = None,
        weigh: Weigh | None = None,
    ) -> BlockVectors:
        """The inverse times vectors, or its forms, over the rows; see `inverse.method.solve`.

        Args:
            make: of the method.
            vectors: as the rows are.
            residuals: is given those of blocks whose answers are iterated for.
            weigh: of the method, where rows may be compressed.

        Returns:
            For each block what was solved.
        """
        source = self.curvature or self.source
        is_kept = isinstance(source, MemoryRows | CompressedRows)
        # Then a pass is free: one solver at a time.
        parts = [{block: v} for block, v in vectors.items()] if is_kept else [vectors]
        passes: Callable[[], Iterator[BlockVectors]] = source.chunks
        if isinstance(source, CompressedRows):
            assert weigh is not None  # methods without it refuse such rows
            passes = partial(source.weighed, weigh, self.damping)
        result: BlockVectors = OrderedDict()
        with preserved_rng(self.device):
            for part in parts:
                result |= solve(make, part, passes, source.n, self.damping, residuals)
        return result

    def chunks(self) -> Iterator[BlockVectors]:
        """Yields the rows chunk by chunk, and leaves the random state alone meanwhile."""
        chunks = self.source.chunks()
        while True:
            with preserved_rng(self.device):  # not while the caller is at work
                rows = next(chunks, None)
            if rows is None:
                return
            yield rows

    def check_order(self) -> None:
        """Raises where results per sample could not be told apart."""
        check_order(self.has_fixed_order)


def check_order(is_fixed: bool) -> None:
    """Raises where results per sample could not be told apart."""
    if not is_fixed:
        raise SourceError(
            "The loader yields the samples in random order, so results per sample could not be "
            "told apart. Use a DataLoader with shuffle=False (fit alone accepts any order)."
        )


def _read(
    reader: Reader, keep: RowsKept | Compression, *, need_norms: bool
) -> tuple[RowSource, SquaredNorms | None, DataChecksum]:
    seen = DataChecksum()
    with preserved_rng(reader.device):
        watched = replace(reader, seen=seen)
        if isinstance(keep, Compression):
            return *read_compressed(watched, keep), seen
        return *read_rows(watched, keep, need_norms=need_norms), seen


def _changed_by_itself(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what a forward pass changed in a model; new caches are fine."""
    return [name for name in differences(before, after) if name in before]


def _check_own_buffers(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Raises if the forward pass itself changed what the model contains."""
    changed = _changed_by_itself(before, after)
    if changed:
        raise ModelError(
            f"The model's own forward pass changes {', '.join(changed[:5])} each time, so its "
            "gradients differ from call to call. Switch that off, for instance with model.eval()."
        )
