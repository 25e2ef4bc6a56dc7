"""What the tuned model answers."""

from collections.abc import Sequence
from typing import Any

import torch
from encoding import Tokens, prompts_to_batch
from generators import Sample
from torch import nn
from tqdm.auto import tqdm


@torch.no_grad()
def greedy_answers(
    model: nn.Module, tokenizer: Any, encoded: Sequence[Tokens], size: int, device: str
) -> list[str]:
    """Greedy answers to the prompts, cut a little above the length of the longest right one."""
    longest = max(len(answer) for _, answer in encoded) + 4
    answers: list[str] = []
    for start in tqdm(range(0, len(encoded), size), desc="Answering", unit="batch"):
        batch = prompts_to_batch(encoded[start : start + size], device)
        texts = model.generate(  # type: ignore[operator]
            **batch,
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        written = texts[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(written, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def accuracy_by_class(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """The share of exact answers in each class."""
    right: dict[str, list[bool]] = {}
    for sample, answer in zip(samples, answers, strict=True):
        right.setdefault(sample.label, []).append(answer == sample.answer)
    return {label: sum(each) / len(each) for label, each in right.items()}
