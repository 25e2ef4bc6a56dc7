"""Pairs as batches of token ids, for the package's `Preference`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from borrowed import encoding
from pairs import Pair
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf.objectives.preference import SIDES, reference_log_probabilities

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Token ids of n pairs.

    Attributes:
        sides: for "chosen" and for "rejected" n prompts with an answer, which ends the text.
        reference: what `reference_log_probabilities` gave, each (n,); empty before.
    """

    sides: dict[str, list[tuple[list[int], list[int]]]]
    reference: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.sides["chosen"])

    def length(self, i: int) -> int:
        """Tokens of a pair's two texts."""
        return sum(encoding.length(texts[i]) for texts in self.sides.values())

    def to_batch(self, which: Sequence[int], device: str) -> Batch:
        """The pairs at these positions."""
        batch = {name: values[list(which)].to(device) for name, values in self.reference.items()}
        for side, texts in self.sides.items():
            own = encoding.to_batch([texts[i] for i in which], device)
            batch |= {f"{side}_{name}": tensor for name, tensor in own.items()}
        return batch

    def to_batches(self, size: int, device: str) -> list[Batch]:
        """All pairs in their order."""
        n = len(self)
        return [self.to_batch(range(i, min(i + size, n)), device) for i in range(0, n, size)]

    def with_reference(self, model: nn.Module, size: int, device: str) -> Self:
        """The same with the log-probabilities of the model without its adapters."""
        bar = tqdm(self.to_batches(size, device), desc="Reference", unit="batch")
        return type(self)(self.sides, reference_log_probabilities(model, bar))


def encode(
    pairs: Sequence[Pair], tokenizer: Any, prompt_format: str
) -> tuple[list[Pair], EncodedPairs]:
    """Pairs from the shortest to the longest, which spares padding, and their token ids."""
    prompts = [tokenizer(prompt_format.format(prompt=p.prompt))["input_ids"] for p in pairs]
    sides = {}
    for side in SIDES:
        texts = [getattr(pair, side) for pair in pairs]
        answers = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        ended = [[*answer, tokenizer.eos_token_id] for answer in answers]
        sides[side] = list(zip(prompts, ended, strict=True))
    order = sorted(range(len(pairs)), key=EncodedPairs(sides, {}).length)
    in_order = {side: [texts[i] for i in order] for side, texts in sides.items()}
    return [pairs[i] for i in order], EncodedPairs(in_order, {})
