"""Models made to deceive: what is computed is right, or refused with its cause."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dense
from captured import data, engine, flat_rows
from pydvl_datainf import ModelError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import FunctionalEngine
from pydvl_datainf.objectives import OutputLoss

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


def assert_right(engine, batch, loss=F.mse_loss):
    names = list(engine.blocks.shapes)
    exact = dense.gradients(engine.model, loss, batch, names)
    torch.testing.assert_close(flat_rows(engine, batch), exact, rtol=1e-9, atol=1e-12)


class Sorting(nn.Module):
    """Sorts its batch, runs a layer, and restores the order: gradients arrive permuted."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        return self.out(torch.tanh(self.inner(x[order]))[order.argsort()])


def test_a_batch_reordered_in_its_middle_is_noticed():
    """Premise: the first and the last sample stay in place, and a plain sum sees no difference."""
    torch.manual_seed(0)
    model = Sorting().double()
    x, y = data(4, 3)
    x[:, 0] = torch.tensor([4.0, 2.0, 3.0, 1.0])
    with pytest.raises(ModelError, match="do not add up"):
        engine(model, strict=True).rows((x, y))
    assert_right(engine(model), (x, y))


def test_a_reordering_that_begins_later_is_noticed():
    torch.manual_seed(0)
    model = Sorting().double()
    x, y = data(16, 3)
    ordered = x[x[:, 0].argsort(descending=True)]
    watched = engine(model)
    watched.rows((ordered, y))
    with pytest.raises(ModelError, match="path through the model depends on the data"):
        [watched.rows((x, y)) for _ in range(8)]


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        y = self.inner(x).square()
        return y - 0.5 * y.mean(0)


class Loop(nn.Module):
    """Calls its layer once for each sample."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return torch.cat([torch.tanh(self.inner(x[i : i + 1])) for i in range(len(x))])


class Constant(nn.Module):
    """A layer that is called with one input for the whole batch, and summed over it."""

    def __init__(self):
        super().__init__()
        self.constant, self.inner = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x) + self.constant(torch.ones(1, 3).to(x)).sum(0)


@pytest.mark.parametrize("build", [Loop, Constant, Sorting])
def test_a_batch_of_one_first_proves_nothing(build):
    torch.manual_seed(0)
    watched = engine(build().double())
    for length in (1, 4, 1, 3):
        assert_right(watched, data(length, 3))


def test_dependence_on_the_batch_is_seen_after_a_batch_of_one():
    watched = engine(Centred().double())
    watched.rows(data(1, 3))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(data(4, 3))


def test_both_engines_refuse_losses_that_depend_on_the_batch():
    model = Centred().double()
    functional = FunctionalEngine(model, OutputLoss(F.mse_loss), Blocks.from_model(model, "full"))
    for kind in (functional, engine(model)):
        with pytest.raises(ModelError, match="depends on other samples"):
            kind.rows(data(4, 3))


class LaterFunctional(nn.Module):
    """Uses a layer's weight, without calling the layer, only for some data."""

    def __init__(self):
        super().__init__()
        self.inner, self.rare = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        y = self.inner(x)
        return y + F.linear(x, self.rare.weight) if (x > 5).any() else y


def test_parameters_that_are_used_in_later_batches_only():
    torch.manual_seed(0)
    watched = engine(LaterFunctional().double())
    assert_right(watched, data(4, 3))
    x, y = data(4, 3)
    assert_right(watched, (x + 10, y))


class Once(nn.Module):
    """An expert that sees the rows that are chosen: all at first, one later."""

    def __init__(self):
        super().__init__()
        self.inner, self.expert = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        chosen = (x[:, 0] > 0).nonzero()[:, 0]
        return self.inner(x).index_add(0, chosen, self.expert(x[chosen]))


def test_an_expert_that_sees_a_single_sample():
    torch.manual_seed(0)
    watched = engine(Once().double())
    x, y = data(4, 3)
    assert_right(watched, (x.abs(), y))
    x = -x.abs()
    x[2, 0] = 1.0
    assert_right(watched, (x, y))


class KeywordOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3).double())

    def forward(self, *, hidden):
        return hidden * self.scale


class Unusual(nn.Module):
    """A layer with a keyword, and a linear layer on vectors as many as there are samples."""

    def __init__(self):
        super().__init__()
        self.scaled, self.inner, self.out = KeywordOnly(), nn.Linear(4, 4), nn.Linear(3, 2)

    def forward(self, x):
        h = self.scaled(hidden=x)
        return self.out(h) + self.inner(torch.ones(4).to(x)).sum()


@pytest.mark.parametrize("length", [4, 3])
def test_layers_that_rules_do_not_fit(length):
    torch.manual_seed(0)
    assert_right(engine(Unusual().double()), data(length, 3))


class CheckpointedPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.position, self.out = nn.Embedding(5, 3), nn.Linear(3, 2)

    def block(self, x):
        return torch.tanh(x + self.position(torch.arange(5)[None]))

    def forward(self, x):
        return self.out(checkpoint(self.block, x, use_reentrant=False)).mean(1)


def test_positions_inside_a_checkpoint():
    torch.manual_seed(0)
    watched = engine(CheckpointedPositions().double())
    x, y = data(4, 5, 3)
    assert_right(watched, (x.requires_grad_(False), y))


def test_the_callers_hooks_are_not_called_again_by_vmap():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3).double())

        def forward(self, x):
            return x * self.scale.exp()

    torch.manual_seed(0)
    model = nn.Sequential(Scale(), nn.Linear(3, 2)).double()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    assert_right(engine(model, strict=True), data(4, 3))


def test_a_first_layer_that_works_in_place_leaves_the_callers_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    x, y = data(4, 3)
    before = x.clone()
    got = flat_rows(engine(model), (x, y))
    assert torch.equal(x, before)
    exact = dense.gradients(
        model, F.mse_loss, (before.relu(), y), list(dict(model.named_parameters()))
    )
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12)


def test_gradients_at_an_optimum_are_explained():
    """The sum over the batch is zero there, up to rounding, and the rows are not."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = data(12, 3)
    model.weight.data = torch.linalg.lstsq(x, y).solution.T
    assert dense.gradients(model, F.mse_loss, (x, y), ["weight"]).sum(0).abs().max() < 1e-12
    assert_right(engine(model, strict=True), (x, y))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_hidden_randomness_is_noticed_however_small_the_loss(scale):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return F.dropout(self.inner(x), 0.5, training=True)

    def loss(outputs, y):
        return scale * F.mse_loss(outputs, y)

    for length in (1, 4):
        with pytest.raises(ModelError, match="random"):
            engine(Noisy().double(), loss).rows(data(length, 3))


class Skipping(nn.Module):
    """Leaves a layer out by chance, as LayerDrop does, or draws and does not use what it drew."""

    def __init__(self, share, draw):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 2)
        self.share, self.draw, self.passes = share, draw, 0

    def forward(self, x):
        self.passes += 1
        is_left_out = self.draw() < self.share
        return self.out(x if is_left_out else x + torch.tanh(self.inner(x)))


DRAWS = {
    "torch": lambda: float(torch.rand([])),
    "numpy": np.random.random,
    "python": random.random,
}


def seeded():
    """So that the first of the draws below 0.05 comes late."""
    torch.manual_seed(37)
    np.random.seed(37)  # noqa: NPY002 - which models draw from
    random.seed(37)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_randomness_that_seldom_shows_is_noticed(draw, length):
    model = Skipping(0.05, draw).double()
    batch = data(length, 3)
    seeded()
    drawn = [draw() < 0.05 for _ in range(60)]
    assert not any(drawn[:16])
    assert any(drawn)
    seeded()
    with pytest.raises(ModelError, match="random"):
        engine(model).rows(batch)


@pytest.mark.parametrize("draw", [np.random.random, random.random], ids=["numpy", "python"])
def test_randomness_that_vmap_does_not_see_is_noticed(draw):
    model, batch = Skipping(0.05, draw).double(), data(4, 3)
    functional = FunctionalEngine(model, OutputLoss(F.mse_loss), Blocks.from_model(model, "full"))
    seeded()
    with pytest.raises(ModelError, match="random"):
        functional.rows(batch)


@pytest.mark.parametrize("length", [1, 4])
def test_models_that_draw_and_do_not_use_it_are_right(length):
    model, batch = Skipping(0.0, DRAWS["torch"]).double(), data(length, 3)
    once = engine(model)
    assert_right(once, batch)
    before = model.passes
    once.rows(batch)
    assert model.passes <= before + 3
