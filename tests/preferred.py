"""Pairs of answers, and the loss of a pair by the formula."""

import torch

import dense
import tiny
from pydvl_datainf import Preference

SIDES = ("chosen", "rejected")


def pairs(length=4, positions=7, padding=("right", "right")):
    """Pairs whose rejected answers are two tokens longer, and what some reference says of them."""
    batch = {}
    for side, where, longer in zip(SIDES, padding, (0, 2), strict=True):
        answers = tiny.answers(length, positions + longer, where)
        batch |= {f"{side}_{key}": tensor for key, tensor in answers.items()}
        batch[f"ref_{side}_logps"] = -8 * torch.rand(length, dtype=torch.float64)
    return batch


def log_probability(model, batch, side):
    """Of one answer, from its tokens alone: padding is cut off."""
    keys = ("input_ids", "attention_mask", "labels")
    answer = {key: batch[f"{side}_{key}"] for key in keys}
    return -(answer["labels"] != -100).sum() * tiny.answer_loss_of_text(model, answer)


def loss_of_pair(model, batch, beta=0.1):
    chosen, rejected = (
        log_probability(model, batch, side) - batch[f"ref_{side}_logps"][0] for side in SIDES
    )
    return torch.log1p(torch.exp(-beta * (chosen - rejected)))


def losses_of(model, batch, **kwargs):
    with torch.no_grad():
        return Preference(**kwargs).losses(model, batch)


def exact_losses(model, batch, loss=loss_of_pair):
    with torch.no_grad():
        return torch.stack(dense.sample_losses(model, loss, batch))
