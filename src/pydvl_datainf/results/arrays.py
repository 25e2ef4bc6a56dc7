"""The layout of one array: shape, chunks, compression and checksums, as Zarr has them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

Array = npt.NDArray[Any]

WORK = "work"
"""The subgroup of intermediate results, deleted when a run is complete."""

ROWS = "rows"
CURVATURE = "curvature"
"""The subgroup of training rows: noise to a compressor, which would halve the speed."""

BASES = "bases"
"""The subgroup of the bases of compressed rows: noise too."""

SIDE_BASES = "sides"
"""The subgroup of side bases of wide layers: noise too."""

MOMENTS = "moments"
"""The subgroup of the second moments of layers."""


class Layout(NamedTuple):
    """What an array looks like.

    Attributes:
        shape: of the array.
        chunks: the shape of a chunk; longer sides than those of the array are cut.
        dtype: NumPy's, or "string".
        dimensions: their names, if they have any.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: Any
    dimensions: tuple[str, ...] | None

    def settings(self, name: str) -> dict[str, Any]:
        """What Zarr is told to make the array.

        Args:
            name: its path in the group.

        Returns:
            Arguments of `zarr.create_array`.
        """
        floating = self.dtype != "string" and np.issubdtype(self.dtype, np.floating)
        sides = zip(self.chunks, self.shape, strict=True)
        return {
            "name": name,
            "shape": self.shape,
            "chunks": tuple(max(1, min(chunk, side)) for chunk, side in sides),
            "dtype": self.dtype,
            "fill_value": np.nan if floating else None,
            "compressors": [*([ZstdCodec(level=1)] if is_compressed(name) else []), Crc32cCodec()],
            "dimension_names": self.dimensions,
        }

    def is_that_of(self, name: str, array: "zarr.Array[Any]") -> bool:
        """Whether an array has just this layout, codecs and fill value included.

        Args:
            name: its path in the group.
            array: as it is in a store.

        Returns:
            False where anything but its attributes differs.
        """
        model = zarr.create_array(MemoryStore(), zarr_format=3, **self.settings(name))
        return _described(array) == _described(model)


def is_compressed(name: str) -> bool:
    """Whether the chunks of an array are compressed."""
    noise = (ROWS, CURVATURE, BASES, SIDE_BASES, WORK)
    return not name.startswith(tuple(f"{group}/" for group in noise))


def _described(array: "zarr.Array[Any]") -> dict[str, Any]:
    return {**array.metadata.to_dict(), "attributes": None}
