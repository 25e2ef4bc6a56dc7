"""Gradient engines: a contract for all of them, on texts of unequal length.

Layers of every type are in test_gradients.py, for the engines that know layers.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import ModelError, NonFiniteError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.padding import PaddingCheckEngine

LENGTHS = [3, 7, 2, 7, 4, 1, 5]


class Texts(nn.Module):
    """A classifier of texts that ignores padding, with a mode, buffers, and a way to break down."""

    def __init__(self, tied=False):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight if tied else self.out.weight
        self.fails = False

    def forward(self, ids, mask):
        h = torch.tanh(self.hidden(self.embedding(ids))) * mask.unsqueeze(-1)
        if self.fails:
            raise RuntimeError("the model broke down")
        return self.out(self.drop(self.norm(h.sum(1) / mask.sum(1, keepdim=True))))


class TextLoss:
    """The cross-entropy of each text times a number of its own, through a function."""

    def __init__(self, function=lambda loss: loss):
        self.function = function

    def losses(self, model, batch):
        out = model(batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(out, batch["classes"], reduction="none")
        return self.function(batch["scale"] * loss)


def built(**settings):
    torch.manual_seed(4)
    model = Texts(**settings).double().eval()
    for tensor in (*model.parameters(), *model.norm.buffers()):
        tensor.data = tensor.data + 0.3 * torch.rand(tensor.shape).to(tensor)
    return model


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, 6, mask.shape, generator=generator)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "classes": torch.randint(0, 6, (len(mask),), generator=generator),
        "scale": 0.5 + torch.rand(len(mask), generator=generator, dtype=torch.float64),
    }


def exact(model, batch, names):
    return dense.gradients(model, TextLoss().losses, batch, names)


def assert_exact(engine, batch):
    """The rows of each block, elementwise."""
    rows = engine.rows(batch)
    members = engine.blocks_of
    assert list(rows) == list(members)
    for block, names in members.items():
        expected = exact(engine.model_of, batch, names)
        assert rows[block].dtype == torch.float64
        assert not rows[block].requires_grad
        torch.testing.assert_close(rows[block], expected, rtol=1e-9, atol=1e-12)
