"""What a model or data contains, as checksums: to notice that it changed, however."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import isclose, sqrt
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pydvl_datainf.quantised import statistics_of

Mark: TypeAlias = tuple[int, int, int, int]

_steps = 0


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


# Fused optimizers do not raise the version of what they change.
register_optimizer_step_post_hook(_count_step)


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Computes a CRC-32 of the bytes of every parameter and buffer, and of scales beside them.

    The latter are those of quantised weights, and of adapters that do not have the scale of their
    configuration, as `set_adapters(..., weights)` of diffusers leaves them.

    It looks at the content, since version counters miss what is written through `.data` or a shared
    array. It reads the whole model: about a quarter of a second for each gigabyte in main memory.

    Args:
        model: on any device.

    Returns:
        For each name of a parameter or buffer, or of what goes with weights, its checksum.
    """
    return {name: zlib.crc32(as_bytes(tensor)) for name, tensor in _tensors_of(model)}


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    tensors = model.named_parameters(), model.named_buffers(), statistics_of(model)
    layers = ((p, m) for p, m in model.named_modules() if hasattr(type(m), "adapter_layer_names"))
    return chain(*tensors, *(_changed_scales(path, layer) for path, layer in layers))


def _changed_scales(path: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
    """By what active adapters of peft are multiplied, where that is not α/r, or α/√r of rsLoRA."""
    ranks, rooted = (getattr(layer, name, {}) for name in ("r", "use_rslora"))
    alphas = getattr(layer, "lora_alpha", getattr(layer, "alpha", {}))
    for adapter, scale in getattr(layer, "scaling", {}).items():
        r, α = ranks.get(adapter, 0), alphas.get(adapter, 0)
        usual = r and α / (sqrt(r) if rooted.get(adapter) else r)
        # Rounding is left where a scale was changed and changed back.
        if adapter in layer.active_adapters and not isclose(scale, usual):
            yield f"{path}.scaling.{adapter}", torch.tensor(float(scale), dtype=torch.float32)


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The names whose tensors changed, came or went."""
    names = dict.fromkeys((*before, *after))
    return [name for name in names if before.get(name) != after.get(name)]


WHOLE = 2**20
"""Bytes up to which a frozen tensor is read whole each time."""
PIECES, PIECE = 64, 2**9
"""Of a larger one that seems to be as before so many pieces, of so many bytes, are read."""


@dataclass(slots=True)
class Seen:
    """What a model contained, and a quick look at whether it still does.

    Trainable and small tensors are read whole each time. A large frozen one is, too, unless it is
    in the same place, counts as many changes in place, no optimizer has made a step meanwhile, and
    it has the same bytes in 64 pieces that are evenly spread. So what passes unseen is a change to
    a few entries of such a tensor, made behind torch's back: through `.data`, or an array that
    shares its memory.

    Args:
        checksums: of every parameter and buffer, by `fingerprint`.
    """

    checksums: Mapping[str, int]
    _marks: dict[str, Mark] = field(default_factory=dict, init=False)

    def changes(self, model: nn.Module) -> list[str]:
        """Compares a model with what was seen.

        Args:
            model: on any device.

        Returns:
            Names of tensors that differ, came or went.
        """
        now: dict[str, int] = {}
        for name, tensor in _tensors_of(model):
            is_large = not tensor.requires_grad and tensor.numel() * tensor.element_size() > WHOLE
            mark = _mark(tensor) if is_large else None
            is_same = mark is not None and self._marks.get(name) == mark
            now[name] = self.checksums[name] if is_same else zlib.crc32(as_bytes(tensor))
            if mark is not None and now[name] == self.checksums.get(name):
                self._marks[name] = mark
        return differences(self.checksums, now)

    def __getstate__(self) -> Mapping[str, int]:
        return self.checksums  # places in memory are those of this process

    def __setstate__(self, checksums: Mapping[str, int]) -> None:
        self.checksums, self._marks = checksums, {}


def _mark(tensor: Tensor) -> Mark | None:
    """Where a plain tensor is, changes, steps, and a checksum of pieces; None of other tensors."""
    is_plain = tensor.layout == torch.strided and tensor.is_contiguous()
    is_plain = is_plain and not (tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
    if not is_plain:
        return None
    flat = tensor.detach().view(-1).view(torch.uint8)
    pieces = flat.as_strided((PIECES, PIECE), ((len(flat) - PIECE) // (PIECES - 1), 1))
    return tensor.data_ptr(), tensor._version, _steps, zlib.crc32(as_bytes(pieces))


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
