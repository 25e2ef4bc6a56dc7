"""Prompts and answers as token ids; only answers have labels."""

from collections.abc import Sequence
from typing import Any

import torch
from generators import Sample
from torch import Tensor

from pydvl_datainf.objectives.tokens import IGNORED

Batch = dict[str, Tensor]
Tokens = tuple[list[int], list[int]]


def encode(
    samples: Sequence[Sample], tokenizer: Any, prompt_format: str
) -> tuple[list[Sample], list[Tokens]]:
    """Samples from the shortest to the longest, which spares padding, and their token ids.

    Those are for each sample the ids of the prompt and those of the answer, which ends the text.
    """
    prompts = [tokenizer(prompt_format.format(prompt=s.prompt))["input_ids"] for s in samples]
    answers = [tokenizer(s.answer, add_special_tokens=False)["input_ids"] for s in samples]
    encoded = [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]
    order = sorted(range(len(samples)), key=lambda i: length(encoded[i]))
    return [samples[i] for i in order], [encoded[i] for i in order]


def length(tokens: Tokens) -> int:
    return len(tokens[0]) + len(tokens[1])


def to_batch(encoded: Sequence[Tokens], device: str) -> Batch:
    """One batch, padded on the right; prompts and padding are labelled -100."""
    shape = (len(encoded), max(map(length, encoded)))
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for i, (prompt, answer) in enumerate(encoded):
        end = len(prompt) + len(answer)
        batch["input_ids"][i, :end] = torch.tensor([*prompt, *answer])
        batch["attention_mask"][i, :end] = 1
        batch["labels"][i, len(prompt) : end] = torch.tensor(answer)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def to_batches(encoded: Sequence[Tokens], size: int, device: str) -> list[Batch]:
    """Batches in the order of the samples."""
    return [to_batch(encoded[i : i + size], device) for i in range(0, len(encoded), size)]


def prompts_to_batch(encoded: Sequence[Tokens], device: str) -> Batch:
    """The prompts alone, padded on the left, so that answers can be written after them."""
    longest = max(len(prompt) for prompt, _ in encoded)
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (prompt, _) in enumerate(encoded):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
