"""Small models and data for the check of a card, and the oracle: one float64 backward a sample."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

Batch = Any
RANK = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """Where everything is computed, and whether in sizes for a test of the script itself."""

    device: torch.device
    tiny: bool

    def sized(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# Images


class Residual(nn.Module):
    """Two convolutions with a way around them, as in ResNet.

    Its activations are smooth: near the kink of a ReLU rounding alone changes gradients.
    """

    def __init__(self, width: int):
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)]
        first, second = convolutions
        norms = [nn.BatchNorm2d(width) for _ in range(2)]
        self.inner = nn.Sequential(first, norms[0], nn.SiLU(inplace=True), second, norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.inner(x))


def convolutional(setting: Setting) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network like ResNet in evaluation mode, with statistics that are not trivial."""
    torch.manual_seed(0)
    width, size, count = setting.sized(64, 4), setting.sized(64, 8), setting.sized(8, 3)
    stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    model = nn.Sequential(stem, *(Residual(width) for _ in range(setting.sized(4, 1))), *pool)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    batch = torch.randn(count, 3, size, size), torch.randint(0, 10, (count,))
    return model.eval().to(setting.device), batch


class Recurrent(nn.Module):
    """A classifier by the last state of an LSTM."""

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def recurrent(setting: Setting) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    width = setting.sized(128, 8)
    model = Recurrent(width).eval().to(setting.device)
    return model, (torch.randn(5, setting.sized(32, 4), width), torch.randint(0, 5, (5,)))


# Texts

SMALL = {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1408}
SMALL |= {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
TINY = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def lora_llama(device: torch.device, dtype: torch.dtype, **sizes: int) -> nn.Module:
    """With random weights, made where it stays."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            base = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(before)
    lora = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"])
    model: nn.Module = get_peft_model(base, lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at its start, zero, A would have no gradient
            parameter.data.normal_(std=0.02)
    return model


def small_llama(setting: Setting, dtype: torch.dtype) -> nn.Module:
    return lora_llama(setting.device, dtype, **(TINY if setting.tiny else SMALL))


def texts(count: int, tokens: int, vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Without padding, so that attention needs no mask; the second half is the answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (count, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    return {"input_ids": ids, "labels": labels}


def small_texts(setting: Setting, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    sizes = TINY if setting.tiny else SMALL
    return texts(count, setting.sized(128, 12), sizes["vocab_size"], seed)


# The oracle


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.double()), y)


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits[0, :-1].double()
    return F.cross_entropy(logits, batch["labels"][0, 1:])


def exact_rows(
    model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]
) -> Tensor:
    """Gradients as rows: on the CPU, in float64, one backward pass for each sample."""
    plain = copy.deepcopy(model).cpu().double()
    parameters = [p for p in plain.parameters() if p.requires_grad]
    is_mapping = isinstance(batch, dict)
    count = len(batch["labels"] if is_mapping else batch[0])
    rows = []
    for i in range(count):
        one = (
            {name: values[i : i + 1] for name, values in batch.items()}
            if is_mapping
            else tuple(values[i : i + 1] for values in batch)
        )
        found = torch.autograd.grad(loss(plain, one), parameters)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def largest_error(rows: Tensor, exact: Tensor) -> float:
    """Of a row, relative to its norm."""
    return float(((rows.cpu().double() - exact).norm(dim=1) / exact.norm(dim=1)).max())
