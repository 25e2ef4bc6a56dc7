"""What a model or data contains, as checksums: to notice that it changed, however."""

import zlib
from collections.abc import Mapping
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from pydvl_datainf.quantised import statistics_of


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Computes a CRC-32 of the bytes of every parameter and buffer, and of scales beside them.

    It looks at the content, since version counters miss what is written through `.data` or a shared
    array. It reads the whole model: about a quarter of a second for each gigabyte in main memory.

    Args:
        model: on any device.

    Returns:
        For each name of a parameter or buffer, or of what quantised weights go with, its checksum.
    """
    tensors = chain(model.named_parameters(), model.named_buffers(), statistics_of(model))
    return {name: zlib.crc32(as_bytes(tensor)) for name, tensor in tensors}


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The names whose tensors changed, came or went."""
    names = dict.fromkeys((*before, *after))
    return [name for name in names if before.get(name) != after.get(name)]


class DataChecksum:
    """CRC-32s of the tensors of batches, one for each name, whatever the batches' lengths."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self._kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}

    def add(self, named: Mapping[str, Tensor]) -> None:
        """Adds the tensors of one batch, by name."""
        for name, tensor in named.items():
            kind, before = (tensor.dtype, tensor.shape[1:]), self.sums.get(name, 0)
            if self._kinds.get(name) != kind:  # only there, so that batches' lengths do not count
                before = zlib.crc32(repr(kind).encode(), before)
            self._kinds[name] = kind
            self.sums[name] = zlib.crc32(as_bytes(tensor), before)


def as_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor, wherever it is, as a buffer."""
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    flat = dense.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    # A single entry counts as contiguous with any stride, and view wants none but 1.
    flat = flat.as_strided((flat.numel(),), (1,))
    return cast(bytes, flat.view(torch.uint8).numpy())  # an array is a buffer without a copy
