"""Tokenised samples, padded batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pydvl_datainf.huggingface.encoder import Encoded as Encoded
from pydvl_datainf.ignored import IGNORED

IDS = "input_ids"


@dataclass(frozen=True, slots=True)
class TokenSamples(Dataset[Encoded]):
    """Samples of unequal length, for a `DataLoader` with `collate` or `to_loader`.

    Args:
        samples: each with `input_ids`, `attention_mask` and `labels`, or with several texts, whose
            names begin with something of their own.
        pad: the token id of padding.
    """

    samples: Sequence[Encoded]
    pad: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Encoded:
        return self.samples[i]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, in all of its texts."""
        return [
            sum(len(value) for name, value in sample.items() if name.endswith(IDS))
            for sample in self.samples
        ]

    def collate(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pads samples on the right to a batch.

        Args:
            samples: B of them.

        Returns:
            Tensors (B, T) of what has an entry for each token, and (B, ...) of the rest.
        """
        batch = {}
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            if _is_by_token(name, values[0]):
                longest = max(len(value) for value in values)
                fill = self.pad if name.endswith(IDS) else IGNORED if _is_label(name) else 0
                values = [[*value, *[fill] * (longest - len(value))] for value in values]
            batch[name] = torch.tensor(values)
        return batch

    def to_loader(self, batch_size: int) -> DataLoader[Any]:
        """Batches in the order of the samples.

        Args:
            batch_size: samples in a batch; the last may have fewer.

        Returns:
            A loader.
        """
        return DataLoader(self, batch_size, collate_fn=self.collate)


def _is_label(name: str) -> bool:
    return name.endswith("labels")


def _is_by_token(name: str, value: Any) -> bool:
    """Whether a value has an entry for each token; several labels of a sample are floating."""
    return isinstance(value, list) and not (_is_label(name) and isinstance(value[0], float))
