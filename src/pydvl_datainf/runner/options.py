"""What a caller asks of a run, beside the model and the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dask.utils import parse_bytes

from pydvl_datainf.errors import PlanError, SourceError
from pydvl_datainf.inverse.compression import Compression, Rank, compression_of

ROWS = ("memory", "zarr", "recompute", "compressed", "auto")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a caller asks of a run, beside the model and the data: arguments of `run_influences`.

    Raises:
        PlanError: if anything is out of range, or does not go together.
    """

    memory: int | str = "2GiB"
    tile: tuple[int | None, int | None] | None = None
    rows: str = "auto"
    top_k: int | None = None
    by_block: bool = False
    query_groups: Sequence[Any] | None = None
    ids: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    self_influence: bool = False
    exact_sample: int | Literal["auto"] = 0
    overwrite: bool = False
    rank: Rank | None = None
    basis_sample: int | None = None
    basis_seed: int = 0
    sides: float | None = None
    normalize: Literal["unit"] | None = None

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise PlanError(f"rows must be one of {ROWS}, got {self.rows!r}.")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise PlanError(f"top_k must be a positive number or None, got {self.top_k!r}.")
        sample = 0 if self.exact_sample == "auto" else self.exact_sample
        if type(sample) is not int or sample < 0:
            raise PlanError(
                f'exact_sample must be a number of samples, 0 or "auto", got {sample!r}.'
            )
        if self.top_k is not None and self.by_block:
            raise PlanError("top_k keeps total scores only; leave out top_k or by_block.")
        if self.normalize not in (None, "unit"):
            raise PlanError(f'normalize must be "unit" or None, got {self.normalize!r}.')
        if self.normalize is not None and self.self_influence:
            raise PlanError(
                "normalize divides influences by the norms of training gradients, and "
                "self-influences would be in another unit; leave out one of the two."
            )
        if self.tile is not None and len(self.tile) != 2:
            raise PlanError(f"tile must be (test, train) samples, got {self.tile!r}.")
        self.bytes  # noqa: B018
        self.compression  # noqa: B018

    @property
    def compression(self) -> Compression | None:
        """How rows are compressed; None where they are not, or are those of another run."""
        try:
            return compression_of(
                self.rows, self.rank, self.basis_sample, self.basis_seed, self.sides
            )
        except SourceError as error:
            raise PlanError(str(error)) from None

    @property
    def bytes(self) -> int:
        """The memory as a number."""
        try:
            number = int(parse_bytes(self.memory))
        except (ValueError, TypeError, AttributeError):
            raise PlanError(
                f'memory must be bytes or text like "2GiB", got {self.memory!r}.'
            ) from None
        if number < 1:
            raise PlanError(f"memory must be positive, got {self.memory!r}.")
        return number
