"""Where a model is loaded, and with how many bits: what transformers is given for that."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface.extra import imported

Quantization: TypeAlias = Literal["4bit", "4bit-double", "8bit"]
"""Of "4bit-double" the scales are quantised too."""


def device_called(name: str) -> torch.device:
    """The device that an option names.

    Args:
        name: "cpu", "cuda", "auto" (CUDA where there is a device), or "spread" (over all of these).

    Returns:
        The device; the first of several.

    Raises:
        ModelError: if it is not there.
    """
    if name in ("auto", "spread"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError('device="cuda", but torch sees no CUDA device. Say "cpu" or "auto".')
    return torch.device(name)


def placement(
    device: str, quantization: Quantization | None, whole: Sequence[str] = ()
) -> Mapping[str, Any]:
    """What `from_pretrained` is given, so that the weights are where and as they are to be.

    Args:
        device: by its name in a job.
        quantization: of the linear layers; None = they stay as they are.
        whole: modules that stay as they are in any case; none = those that transformers chooses.

    Returns:
        Arguments by name; none where the model is moved once it is loaded.
    """
    if quantization is None:
        return {"device_map": "auto"} if device == "spread" else {}
    # What it tells of each call of a layer, and of kernels that could be quicker.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    imported("bitsandbytes")
    where = device_called(device)
    return {
        "device_map": "auto" if device == "spread" else {"": _numbered(where)},
        "quantization_config": imported("transformers").BitsAndBytesConfig(
            load_in_4bit=quantization != "8bit",
            load_in_8bit=quantization == "8bit",
            llm_int8_skip_modules=list(whole) or None,  # of 4 bits, too
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantization == "4bit-double",
            bnb_4bit_compute_dtype=_compute_dtype(where),
        ),
    }


def _numbered(device: torch.device) -> str | int:
    """A device as device maps have it."""
    return torch.cuda.current_device() if device.type == "cuda" else str(device)


def _compute_dtype(device: torch.device) -> torch.dtype:
    """What dequantised weights are multiplied in."""
    is_half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if is_half else torch.float32
