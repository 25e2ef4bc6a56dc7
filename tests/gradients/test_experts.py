"""Mixtures of experts: rows are right however tokens are routed, or are refused."""

import pytest
import torch
from torch import nn

from captured import Table, assert_all_right, assert_right, batches, engine
from pydvl_datainf import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


class Experts(nn.Module):
    """Sends each token to one of some experts, which are called with their tokens alone."""

    def __init__(self, count, capacity=None):
        super().__init__()
        self.router, self.out = nn.Linear(3, count), nn.Linear(3, 2)
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))
        self.capacity = capacity

    def forward(self, x):
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).flatten(0, 1).max(-1)
        mixed = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            place = (chosen == e).nonzero()[: self.capacity, 0]
            mixed = mixed.index_add(0, place, self.experts[e](tokens[place]) * weights[place, None])
        return self.out((tokens + mixed).tanh().reshape(x.shape).mean(1))


class Deeper(Experts):
    """The same after a layer, so that the graph shows how tokens are picked."""

    def __init__(self, count):
        super().__init__(count)
        self.first = nn.Linear(3, 3)

    def forward(self, x):
        return super().forward(self.first(x).tanh())


@pytest.mark.parametrize("sizes", [(2, 8, 4), (2, 3, 2), (4, 5, 3), (2, 4, 4)])
def test_experts_that_get_a_multiple_of_the_samples_by_chance(sizes):
    length, tokens, count = sizes
    for seed in range(12):
        torch.manual_seed(seed)
        watched = engine(Deeper(count).double())
        assert_all_right(watched, batches(*[length] * 10, shape=(tokens, 3)))


class SharedExperts(Deeper):
    """Experts that add rows of one table to their tokens, of which they get any number."""

    def __init__(self, count):
        super().__init__(count)
        self.table = Table(count, 3)

    def forward(self, x):
        tokens = self.first(x).tanh().flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).max(-1)
        mixed = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            place = (chosen == e).nonzero()[:, 0]
            moved = (self.experts[e](tokens[place]) + self.table.weight[e]).tanh()
            mixed = mixed.index_add(0, place, moved * weights[place, None])
        return self.out((tokens + mixed).tanh().reshape(x.shape).mean(1))


@pytest.mark.parametrize("sizes", [(2, 8, 4), (2, 3, 2), (4, 5, 3), (2, 4, 4)])
def test_tables_of_experts_that_get_a_multiple_of_the_samples_by_chance(sizes):
    length, tokens, count = sizes
    for seed in range(6):
        torch.manual_seed(seed)
        watched = engine(SharedExperts(count).double())
        assert_all_right(watched, batches(*[length] * 8, shape=(tokens, 3)))


def routed(model, *counts):
    """A batch of four samples of five tokens, so many of which go to each expert in turn."""
    chosen = torch.cat([torch.full((count,), e) for e, count in enumerate(counts)])
    x = torch.randn(len(chosen), 3).double()
    directions = torch.linalg.pinv(model.router.weight.data)
    target = -5 * torch.ones(len(chosen), len(counts)).double()
    target[range(len(chosen)), chosen] = 5
    x += (target - model.router(x).detach()) @ directions.T
    order = torch.randperm(len(x))
    return x[order].reshape(4, -1, 3), torch.randn(4, 2).double()


@pytest.mark.parametrize("tokens", [4, 1, 7])
def test_an_expert_that_wakes_late_with_as_many_tokens_as_there_are_samples(tokens):
    torch.manual_seed(0)
    model = Experts(3).double()
    watched = engine(model)
    for counts in ((20, 0, 0), (13, 7, 0), (20 - tokens, 0, tokens), (9, 7, 4), (4, 4, 12)):
        assert_right(watched, routed(model, *counts))


def test_mixtures_of_experts_are_not_refused_for_their_routing():
    torch.manual_seed(0)
    watched = engine(Experts(3).double())
    assert_all_right(watched, batches(*[4] * 40, shape=(5, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_samples_that_share_the_capacity_of_an_expert_are_refused_or_right(seed):
    """The experts are trained: one pass per sample has each sample's own loss in hand."""
    torch.manual_seed(seed)
    watched = engine(Experts(2, capacity=8).double())
    with pytest.raises(ModelError, match=r"depends on other samples.*batch_size=1"):
        assert_all_right(watched, batches(*[4] * 6, shape=(5, 3)))


def test_an_undecided_router_costs_a_pass_and_no_error():
    """Premise: the loss of one sample is another alone, as where two experts tie to rounding."""

    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.outside, self.inner = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            tied = (x[:, :1] > 5) & (torch.tensor(len(x)) > 1)
            return self.inner(x @ self.outside.weight * torch.where(tied, 1.01, 1.0))

    torch.manual_seed(0)
    watched = engine(Undecided().double())
    for shift in (0.0, 0.0, 10.0):
        ((x, y),) = batches(4)
        x[1, 0] += shift
        assert_right(watched, (x, y))
