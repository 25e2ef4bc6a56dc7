"""What `fit` learns of the training data and of the model."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_named
from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.fingerprint import DataChecksum, Seen
from pydvl_datainf.gradients.compressed import CompressedRows
from pydvl_datainf.gradients.sources import MemoryRows, RowSource, sum_norms
from pydvl_datainf.gradients.supported import preserved_rng
from pydvl_datainf.inverse.coordinates import lifted, projected
from pydvl_datainf.inverse.damping import SquaredNorms, check_finite, resolve_damping
from pydvl_datainf.inverse.method import Makes, Method, solve
from pydvl_datainf.inverse.sides import off_sides, on_sides
from pydvl_datainf.terminal import some
from pydvl_datainf.vectors import BlockVectors


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The rows of the training samples, what was computed from them, and where they came from.

    Args:
        source: of the rows.
        norms: sums of the squared norms of the rows, where λ needed them.
        damping: λ of each block.
        device: of the rows.
        model: what it contained.
        data: checksums of the data's tensors.
        has_fixed_order: whether every pass yields the samples in one order.
        methods: what takes the place of the inverse in each block, with what is known of it.
        curvature: of the rows that the inverse is made of, where they are others.
    """

    source: RowSource
    norms: SquaredNorms | None
    damping: Mapping[str, float]
    device: torch.device
    model: Seen
    data: Mapping[str, int]
    has_fixed_order: bool
    methods: Mapping[str, Method]
    curvature: RowSource | None = None

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
        methods = {block: method.to(device) for block, method in self.methods.items()}
        source = self.source.to(device)
        return replace(self, source=source, device=device, methods=methods, curvature=curvature)

    def is_of(self, batches: Iterable[Batch], model: nn.Module) -> bool:
        """Whether these batches, in this order, were read, and the model is as it was then."""
        if not self.has_fixed_order:
            return False
        seen = DataChecksum()
        for batch in batches:
            seen.add(batch_named(batch))
        return seen.sums == self.data and not self.model.changes(model)

    def check_unchanged(self, model: nn.Module) -> None:
        """Compares every parameter and buffer of the model with what they were.

        Args:
            model: whose gradients the rows are.

        Raises:
            ModelError: if any differs.
        """
        changed = self.model.changes(model)
        if not changed:
            return
        raise ModelError(
            f"The model changed after fit ({len(changed)} tensors: {some(changed)}), so its "
            "gradients no longer belong to the fitted ones. Call fit again."
        )

    @property
    def method(self) -> Method:
        """That of any block: they are of one kind."""
        return next(iter(self.methods.values()))

    @property
    def side_widths(self) -> dict[str, tuple[int, int]]:
        """How many outputs and inputs are kept of the blocks that have side bases."""
        sides = self.source.sides if isinstance(self.source, CompressedRows) else {}
        return {block: one.widths for block, one in sides.items()}

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
        source = self.source
        if not isinstance(source, CompressedRows):
            return vectors
        return projected(on_sides(vectors, source.sides), source.bases, torch.float64)

    def lifted(self, vectors: BlockVectors) -> BlockVectors:
        """Whole vectors of what is as the rows are."""
        source = self.source
        if not isinstance(source, CompressedRows):
            return vectors
        return off_sides(lifted(vectors, source.bases), source.sides)

    def times(self, vectors: BlockVectors, makes: Makes | None = None) -> BlockVectors:
        """The inverse times vectors; warns where answers that are iterated for are not solved.

        Args:
            vectors: as the rows are: whole, or coordinates.
            makes: of the methods, where not their `times`.

        Returns:
            Factors, as the rows are.
        """
        residuals: dict[str, Tensor] = {}
        times = makes or {block: method.times for block, method in self.methods.items()}
        factors = self.solve(times, vectors, residuals)
        check_finite(factors)
        if residuals:
            self.warn_of(residuals.values())
        return factors

    def factors(self, vectors: BlockVectors) -> BlockVectors:
        """The inverse times whole vectors; for compressed rows, the part of it in their bases."""
        return self.lifted(self.times(self.projected(vectors)))

    def forms(self, vectors: BlockVectors, residuals: dict[str, Tensor]) -> BlockVectors:
        """vᵀ (inverse) v of each vector.

        Args:
            vectors: as the rows are.
            residuals: is given those of blocks whose answers are iterated for.

        Returns:
            For each block one number a vector, (m,), in float64.
        """
        forms = {block: method.forms for block, method in self.methods.items()}
        return self.solve(forms, vectors, residuals)

    def warn_of(self, residuals: Iterable[Tensor]) -> None:
        """Warns where answers that were iterated for are not solved."""
        self.method.warn_of(max((float(r.max()) for r in residuals), default=0.0))

    def solve(
        self, make: Makes, vectors: BlockVectors, residuals: dict[str, Tensor] | None = None
    ) -> BlockVectors:
        """The inverse times vectors, or its forms, over the rows; see `inverse.method.solve`.

        Args:
            make: of the method.
            vectors: as the rows are.
            residuals: is given those of blocks whose answers are iterated for.

        Returns:
            For each block what was solved.
        """
        source = self.curvature or self.source
        is_kept = isinstance(source, MemoryRows | CompressedRows)
        # Then a pass is free, and draws no random numbers: one solver at a time.
        parts = [{block: v} for block, v in vectors.items()] if is_kept else [vectors]
        passes: Callable[[], Iterator[BlockVectors]] = source.chunks
        if isinstance(source, CompressedRows):
            passes = partial(source.weighed, self.method.weighed, self.damping)
        result: BlockVectors = OrderedDict()
        with nullcontext() if is_kept else preserved_rng(self.device):
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


def check_order(is_fixed: bool) -> None:
    """Raises where results per sample could not be told apart."""
    if not is_fixed:
        raise SourceError(
            "The loader yields the samples in random order, so results per sample could not be "
            "told apart. Use a DataLoader with shuffle=False (fit alone accepts any order)."
        )
