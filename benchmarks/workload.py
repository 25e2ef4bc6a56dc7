"""What is measured: MiniLM with LoRA on query and value, and film reviews of 48 tokens."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pydvl_datainf import SequenceClassification
from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.reviews import draw_reviews, read_reviews
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import build_model, encode

TOKENS, BATCH_SIZE = 48, 32

Batch = dict[str, Tensor]


def lora_model(rank: int = 4) -> nn.Module:
    """MiniLM in evaluation mode, whose only trainable parameters are 24 LoRA matrices.

    B is drawn at random: at its start, zero, A would have no gradient.
    """
    torch.manual_seed(0)
    model = build_model(model_folder(), rank).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return model


def reviews(train: int, test: int) -> tuple[list[Batch], list[Batch]]:
    """Batches of training and of test reviews, all padded or cut to 48 tokens."""
    settings = DemoSettings(train=train, test=test, tokens=TOKENS)
    drawn = draw_reviews(read_reviews(reviews_file()), settings)
    first, second = (encode(side, model_folder(), TOKENS).to_batch() for side in drawn)
    return _batches(first), _batches(second)


def joined(batches: Iterable[Batch]) -> Batch:
    """One batch of all."""
    listed = list(batches)
    return {name: torch.cat([batch[name] for batch in listed]) for name in listed[0]}


def forward_and_backward(model: nn.Module, batches: Iterable[Batch]) -> None:
    """The bare work: one batched forward and backward pass of the summed losses, and no more."""
    for batch in batches:
        SequenceClassification().losses(model, batch).sum().backward()
    model.zero_grad()


def lora_blocks(model: nn.Module) -> "OrderedDict[str, list[str]]":
    """Each LoRA matrix as a block of its own."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return OrderedDict((name, [name]) for name in names)


def _batches(tensors: Batch) -> list[Batch]:
    length = len(tensors["labels"])
    padded = {
        name: nn.functional.pad(t, (0, TOKENS - t.shape[1])) if t.ndim == 2 else t
        for name, t in tensors.items()
    }
    return [
        {name: t[start : start + BATCH_SIZE] for name, t in padded.items()}
        for start in range(0, length, BATCH_SIZE)
    ]
