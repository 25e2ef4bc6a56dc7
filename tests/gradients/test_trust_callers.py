"""Numbers, states and data of callers that are out of the ordinary: right, or refused by name."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from captured import data, engine
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

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


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
