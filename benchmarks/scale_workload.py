"""A small transformer and random tokens in any number: what benchmarks/scale.py measures with."""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

from pydvl_datainf import DataInfInfluence, SequenceClassification

TOKENS, VOCABULARY, BATCH_SIZE = 16, 1000, 32


class Texts(Dataset):
    """Random token ids with random labels, made when they are asked for."""

    def __init__(self, length: int, first: int = 0, tokens: int = TOKENS):
        self.length, self.first, self.tokens = length, first, tokens

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.first + i)
        ids = torch.randint(1, VOCABULARY, (self.tokens,), generator=generator)
        return {"input_ids": ids, "labels": torch.randint(0, 2, (), generator=generator)}


def queries(m: int, tokens: int = TOKENS) -> Texts:
    """Texts that no training set holds."""
    return Texts(m, 10**9, tokens)


def influence() -> DataInfInfluence:
    """BERT of two layers; query and value are trainable: 4 blocks, 66,048 parameters in all."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
    )
    model: nn.Module = BertForSequenceClassification(config).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("query" in name or "value" in name)
    return DataInfInfluence(model, SequenceClassification(), batch_size=BATCH_SIZE)
