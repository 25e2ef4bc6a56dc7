"""Batches of many lengths: samples that are computed alone stay few, and a fault is still found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import ModelError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.gradients.capture import LENGTHS, SAMPLES_PER_LENGTH
from pydvl_datainf.objectives import as_objective


class Counting(nn.Module):
    """A layer, and matrices that mix the samples of batches of some lengths, and of no graph."""

    def __init__(self):
        super().__init__()
        self.layer, self.alone, self.mixing = nn.Linear(3, 4), 0, {}

    def forward(self, x):
        self.alone += len(x) == 1
        return self.mixing.get(len(x), torch.eye(len(x), dtype=x.dtype)) @ self.layer(x)


@pytest.fixture
def watched():
    torch.manual_seed(0)
    model = Counting().double()
    return CaptureEngine(model, as_objective(F.cross_entropy), Blocks.from_model(model, "module"))


def batch(length):
    return torch.randn(length, 3).double(), torch.randint(0, 4, (length,))


def test_few_samples_are_computed_alone(watched):
    lengths = range(2, 24)
    for length in lengths:
        watched.rows(batch(length))
    # Two of the first batch, and one of the sixteenth.
    most = 3 + LENGTHS + sum(lengths) / SAMPLES_PER_LENGTH
    assert LENGTHS < watched.model.alone <= most < len(lengths)


@pytest.mark.parametrize("late", [3, 30])
def test_mixing_in_batches_of_a_late_length_is_found(watched, late):
    watched.model.mixing = {late: torch.full((late, late), 1 / late).double()}
    lengths = [n for n in range(2, 29) if n != late]
    for length in lengths:
        watched.rows(batch(length))
    with pytest.raises(ModelError, match="depends on other samples"):
        [watched.rows(batch(late)) for _ in range(SAMPLES_PER_LENGTH // late + 1)]


@pytest.mark.parametrize("length", range(3, 2 + LENGTHS))
def test_the_first_lengths_are_checked_at_once(watched, length):
    watched.model.mixing = {length: torch.full((length, length), 1 / length).double()}
    for earlier in range(2, length):
        watched.rows(batch(earlier))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(batch(length))
