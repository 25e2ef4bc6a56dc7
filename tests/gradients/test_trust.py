"""Models and data made to deceive: what is computed is right, or refused with its cause."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

import dense
from pydvl_datainf import (
    BlockError,
    DampingError,
    DataInfInfluence,
    ModelError,
    NonFiniteError,
    SourceError,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.objectives import OutputLoss

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


def engine(model, loss=F.mse_loss, **kwargs):
    return CaptureEngine(model, OutputLoss(loss), Blocks.from_model(model, "module"), **kwargs)


def rows(engine, batch):
    return engine.blocks.flatten(engine.rows(batch))


def assert_right(engine, batch, loss=F.mse_loss):
    names = list(engine.blocks.shapes)
    exact = dense.gradients(engine.model, loss, batch, names)
    torch.testing.assert_close(rows(engine, batch), exact, rtol=1e-9, atol=1e-12)


def data(length, *shape, targets=2):
    return torch.randn(length, *shape).double(), torch.randn(length, targets).double()


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
    got = rows(engine(model), (x, y))
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


# Numbers


@pytest.mark.parametrize("gradients", ["auto", "functional"])
@pytest.mark.parametrize("where", [0, 5])
def test_nan_in_the_data_is_named(gradients, where):
    x, y = data(6, 3)
    x[where] = float("nan")
    influence = DataInfInfluence(nn.Linear(3, 2).double(), F.mse_loss, gradients=gradients)
    with pytest.raises(ModelError, match="NaN in the data"):
        influence.fit([(x[:3], y[:3]), (x[3:], y[3:])])


class Masked(nn.Module):
    """Overflows where a mask is zero, as some attention does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def losses(self, model, batch):
        scores = (self.inner(batch["x"]) ** 2).sum(-1)
        return (scores / batch["attention_mask"]).mean(1)


@pytest.mark.parametrize("kind", [CaptureEngine, FunctionalEngine])
def test_padding_is_named_where_a_sample_with_padding_has_no_loss(kind):
    torch.manual_seed(0)
    model = Masked().double()
    batch = {"x": torch.randn(3, 4, 3).double(), "attention_mask": torch.ones(3, 4).double()}
    made = kind(model, model, Blocks.from_model(model, "module"))
    batch["x"][2, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 2") as told:
        made.rows(batch)
    assert "padding" not in str(told.value)
    batch["attention_mask"][1, 3] = 0
    with pytest.raises(
        NonFiniteError, match=r"sample 1 .* inf.*has padding, at which the attention"
    ):
        made.rows(batch)


def test_a_gradient_that_is_not_finite_is_named():
    def root(outputs, y):
        return (outputs - y).abs().sum().sqrt()

    model = nn.Linear(3, 2).double()
    x, _ = data(4, 3)
    y = model(x).detach() + 1
    y[2] = model(x[2:3]).detach()[0]
    with pytest.raises(ModelError, match="sample 2 of a batch is not finite in block ''"):
        engine(model, root).rows((x, y))


def test_overflow_in_the_inverse_is_refused():
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    influence = DataInfInfluence(nn.Linear(3, 2), lambda o, y: 1e19 * F.mse_loss(o, y))
    influence.with_regularization(2e-38).fit([(x, y)])
    with pytest.raises(DampingError, match="overflows"):
        influence.influences(x, y)


def test_complex_parameters_are_refused():
    model = nn.Linear(3, 2)
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.cfloat))
    with pytest.raises(BlockError, match="phase"):
        DataInfInfluence(model, F.mse_loss)


def test_parameters_without_entries_take_no_part():
    model = nn.Linear(3, 2).double()
    model.register_parameter("empty", nn.Parameter(torch.zeros(0)))
    influence = DataInfInfluence(model, F.mse_loss, block_structure="parameter_wise")
    assert influence.block_names == ["weight", "bias"]


# States of the caller


def test_inference_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = data(5, 3)
    expected = DataInfInfluence(model, F.mse_loss, 0.1).fit([(x, y)])
    with torch.inference_mode():
        influence = DataInfInfluence(model, F.mse_loss, 0.1)
        influence.fit(DataLoader(TensorDataset(x, y), batch_size=2))
        made_here = x * 1.0
        for mode in ("up", "perturbation"):
            torch.testing.assert_close(
                influence.influences(made_here, y, mode=mode),
                expected.influences(x, y, mode=mode),
                rtol=1e-9,
                atol=1e-9,
            )


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_no_call_draws_from_the_global_generator(rows):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = data(5, 3)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    before = torch.get_rng_state()
    influence = DataInfInfluence(model, F.mse_loss, 0.1, rows=rows).fit(loader)
    influence.influences(x, y, mode="perturbation")
    influence.training_influences(x, y)
    influence.self_influences(loader)
    influence.with_regularization("auto")
    influence._solve_hvp(influence.loss_gradients(x, y))
    assert torch.equal(torch.get_rng_state(), before)


def test_deepcopies_are_independent():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = data(5, 3)
    influence = DataInfInfluence(model, F.mse_loss, 0.1, rows="recompute").fit([(x, y)])
    copied = copy.deepcopy(influence)
    expected = influence.influences(x, y)
    model.weight.data.zero_()
    torch.testing.assert_close(copied.influences(x, y), expected)


def test_an_interrupted_fit_leaves_hooks_and_state():
    class Interrupting(nn.Linear):
        armed = False

        def forward(self, x):
            if self.armed:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Interrupting(3, 2).double()
    influence = DataInfInfluence(model, F.mse_loss, 0.1).fit([data(4, 3)])
    model.armed = True
    with pytest.raises(KeyboardInterrupt):
        influence.fit([data(4, 3)])
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    model.armed = False
    assert influence.influences(*data(2, 3)).shape == (2, 2)


class Counting(nn.Module):
    """Counts its calls in a buffer; keeps a mask from the first of them."""

    def __init__(self, counts):
        super().__init__()
        self.inner, self.counts = nn.Linear(3, 2), counts
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += self.counts
        self.register_buffer("mask", torch.ones(3))
        return self.inner(x * self.mask)


def test_buffers_that_the_forward_pass_makes_or_changes():
    batch = tuple(t.float() for t in data(4, 3))
    influence = DataInfInfluence(Counting(0), F.mse_loss, 0.1).fit([batch])
    assert influence.influences(*batch).shape == (4, 4)
    with pytest.raises(ModelError, match="own forward pass changes calls"):
        DataInfInfluence(Counting(1), F.mse_loss, 0.1).fit([batch])


class Settling(nn.Module):
    """Rounds its weights when it is first called, as layers do that are quantised then."""

    def __init__(self):
        super().__init__()
        self.inner, self.frozen = nn.Linear(3, 2), nn.Linear(3, 3).requires_grad_(False)
        self.is_settled = False

    def forward(self, x):
        y = self.inner(self.frozen(x).tanh())
        if not self.is_settled:
            self.frozen.weight.data = (8 * self.frozen.weight.data).round() / 8
            self.is_settled = True
        return y


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_weights_that_settle_in_the_first_pass(rows):
    """Premise: the first batch is seen by other weights than all later ones."""
    torch.manual_seed(0)
    x, y = data(6, 3)
    model = Settling().double()
    before = model.frozen.weight.clone()
    influence = DataInfInfluence(model, F.mse_loss, 0.1, rows=rows).fit(
        [(x[:3], y[:3]), (x[3:], y[3:])]
    )
    assert not torch.equal(model.frozen.weight, before)
    settled = DataInfInfluence(model, F.mse_loss, 0.1).fit([(x, y)])
    torch.testing.assert_close(
        influence.training_influences(x, y), settled.training_influences(x, y), rtol=1e-9, atol=0
    )


def test_instance_norm_that_tracks_is_refused_in_training_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.InstanceNorm1d(4, track_running_stats=True))
    with pytest.raises(ModelError, match="running statistics"):
        engine(model).rows((torch.randn(2, 4, 3), torch.randn(2, 4, 4)))


# Data


class Stream(IterableDataset):
    def __init__(self, *tensors):
        self.tensors = tensors
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(zip(*self.tensors, strict=True))


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_a_stream_without_length_is_read_once_a_pass(rows):
    torch.manual_seed(0)
    x, y = data(5, 3)
    model = nn.Linear(3, 2).double()
    stream = Stream(x, y)
    influence = DataInfInfluence(model, F.mse_loss, rows=rows).fit(DataLoader(stream, batch_size=2))
    assert stream.passes == 1
    expected = DataInfInfluence(model, F.mse_loss).fit([(x, y)])
    torch.testing.assert_close(influence.training_influences(x, y), expected.influences(x, y))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 4, "shuffle": True, "drop_last": True},
        {"sampler": RandomSampler(range(11), replacement=True)},
        {"sampler": RandomSampler(range(11), num_samples=5)},
        {"sampler": Weighted([1.0] * 11, 11)},
    ],
)
@pytest.mark.parametrize("regularization", [0.1, "auto"])
def test_other_samples_on_every_pass_are_refused_where_they_would_be_read_again(
    kwargs, regularization
):
    model = nn.Linear(3, 2).double()
    loader = DataLoader(TensorDataset(*data(11, 3)), **kwargs)
    with pytest.raises(SourceError, match="other samples on every pass"):
        DataInfInfluence(model, F.mse_loss, regularization, rows="recompute").fit(loader)
    kept = DataInfInfluence(model, F.mse_loss, regularization, rows="memory").fit(loader)
    assert torch.equal(*(kept.influences(*data(2, 3)).isfinite() for _ in range(2)))


def test_what_is_no_data_is_refused():
    with pytest.raises(SourceError, match="a int"):
        DataInfInfluence(nn.Linear(3, 2), F.mse_loss).fit(5)


def test_factors_of_no_block_are_refused():
    x, y = data(4, 3)
    influence = DataInfInfluence(nn.Linear(3, 2).double(), F.mse_loss, 0.1).fit([(x, y)])
    for factors in ({}, {"other": torch.zeros(1, 8)}, {"": torch.zeros(1, 7)}):
        with pytest.raises(BlockError):
            influence.influences_from_factors_by_block(factors, x, y)
