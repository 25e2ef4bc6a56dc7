"""Models that begin to mix samples, or to use parameters otherwise, in later batches."""

import pytest
import torch
from torch import nn

from captured import assert_all_right, assert_right, batches, engine
from pydvl_datainf import ModelError
from pydvl_datainf.gradients.passes import SAMPLES_PER_CHECK

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


class Late(nn.Module):
    """Does something else with data that is large."""

    def __init__(self, change, when=lambda x: bool((x > 5).any())):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.change, self.when = change, when

    def forward(self, x):
        h = self.inner(x).tanh()
        return self.out(self.change(self, x, h) if self.when(x) else h)


CHANGES = {
    "a mean over the batch": lambda model, x, h: h + 0.1 * h.mean(0),
    "its neighbour": lambda model, x, h: h + 0.1 * h.roll(1, 0),
    "the batch as one": lambda model, x, h: h / h.norm(),
    "the largest": lambda model, x, h: h - 0.1 * h.amax(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", range(4))
def test_mixing_from_the_ninth_batch_on(change, seed):
    torch.manual_seed(seed)
    watched = engine(Late(change).double())
    assert_all_right(watched, batches(*[4] * 8))
    ((x, y),) = batches(4)
    x[seed] += 10
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows((x, y))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_mixing_in_a_shorter_last_batch(change):
    torch.manual_seed(0)
    watched = engine(Late(change, lambda x: len(x) == 3).double())
    assert_all_right(watched, batches(*[8] * 3))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(next(batches(3)))


def test_mixing_in_a_shorter_last_batch_that_no_graph_shows():
    """Numbers alone differ: a matrix that is the identity but for batches of three."""
    torch.manual_seed(0)
    mixing = {3: torch.full((3, 3), 1 / 3).double()}
    watched = engine(
        Late(lambda model, x, h: mixing.get(len(x), torch.eye(len(x)).double()) @ h).double()
    )
    watched.model.when = lambda x: True
    assert_all_right(watched, batches(*[4] * 3))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(next(batches(3)))


def test_mixing_that_no_graph_shows_is_found_within_the_samples_between_two_checks():
    torch.manual_seed(0)
    watched = engine(
        Late(lambda model, x, h: model.matrix[: len(x), : len(x)] @ h, lambda x: True).double()
    )
    watched.model.matrix = torch.eye(4).double()
    assert_all_right(watched, batches(*[4] * 5))
    watched.model.matrix = torch.full((4, 4), 1 / 4).double()
    with pytest.raises(ModelError, match="depends on other samples"):
        [watched.rows(batch) for batch in batches(*[4] * (SAMPLES_PER_CHECK // 4))]


REUSED = {
    "in place of its layer": lambda model, x, h: x @ model.inner.weight.T,
    "beside its layer": lambda model, x, h: h + x @ model.inner.weight.T,
    "twice": lambda model, x, h: model.inner(x) + h,
}


@pytest.mark.parametrize("change", REUSED.values(), ids=REUSED)
def test_a_parameter_that_is_used_otherwise_later(change):
    torch.manual_seed(0)
    watched = engine(Late(change).double())
    assert_all_right(watched, batches(*[4] * 3))
    for x, y in batches(4, 4):
        assert_right(watched, (x + 10, y))
