"""Rows equal one backward pass per sample, for every layer type and every engine."""

import warnings
from itertools import cycle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dense
from captured import flat_rows
from pydvl_datainf import ModelError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.objectives import OutputLoss
from zoo import CASES, EXPLAINED, numbers


def in_double(batch):
    return tuple(t.double() if t.is_floating_point() else t for t in batch)


def truth(model, loss, batch):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return dense.gradients(model, loss, batch, names)


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(7)
    return CASES[request.param]


# vmap has no rule for these: a fused LSTM, a branch on values, a gradient by frequency.
REFUSED_BY_VMAP = ("lstm", "vmap refuses", "scaled by frequency", "sparse embedding")


class LayersContract:
    """What engines that know layers owe to each type of them, beside the contract of engines."""

    def rows_and_truth(self, case, length, dtype=torch.float64):
        model = case.model().to(dtype)
        batch = in_double(case.batch(length))
        batch = tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)
        blocks = Blocks.from_model(model, "module")
        engine = self.engine(model, OutputLoss(case.loss), blocks)
        exact = dense.in_float64(model)
        wide = tuple(t.double() if t.is_floating_point() else t for t in batch)
        return flat_rows(engine, batch), truth(exact, case.loss, wide)

    @pytest.mark.parametrize("length", [1, 5])
    def test_rows_are_those_of_one_backward_pass_per_sample(self, case, length):
        rows, exact = self.rows_and_truth(case, length)
        assert exact.abs().max() > 0
        assert rows.dtype == torch.float64
        assert not rows.requires_grad
        torch.testing.assert_close(rows, exact, rtol=1e-9, atol=1e-12)

    def test_rows_are_float32_for_a_float32_model(self, case):
        rows, exact = self.rows_and_truth(case, 4, torch.float32)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), exact, rtol=1e-4, atol=1e-5)

    def test_a_later_batch_of_another_length(self, case):
        model = case.model().double()
        engine = self.engine(model, OutputLoss(case.loss), Blocks.from_model(model, "full"))
        for length in (2, 5, 1):
            batch = in_double(case.batch(length))
            exact = truth(model, case.loss, batch)
            torch.testing.assert_close(flat_rows(engine, batch), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
class TestCapture(LayersContract):
    def engine(self, model, objective, blocks):
        return CaptureEngine(model, objective, blocks)


class TestFunctional(LayersContract):
    @pytest.fixture(params=[name for name in CASES if name not in REFUSED_BY_VMAP])
    def case(self, request):
        torch.manual_seed(7)
        return CASES[request.param]

    def engine(self, model, objective, blocks):
        return FunctionalEngine(model, objective, blocks)

    @pytest.mark.parametrize("name", ["vmap refuses"])
    def test_says_what_to_use_instead(self, name):
        case = CASES[name]
        model = case.model()
        engine = self.engine(model, OutputLoss(case.loss), Blocks.from_model(model, "full"))
        with pytest.raises(ModelError, match='Use gradients="auto"'):
            engine.rows(case.batch(3))


@pytest.mark.parametrize("name", CASES)
def test_the_warning_names_exactly_what_capture_cannot_explain(name):
    case = CASES[name]
    model = case.model()
    engine = CaptureEngine(model, OutputLoss(case.loss), Blocks.from_model(model, "module"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.rows(case.batch(4))
    told = " ".join(str(w.message) for w in caught if "per sample" in str(w.message))
    names = {name for name, _ in model.named_parameters()}
    assert {name for name in names if f"{name}," in told or f"{name})" in told} == case.per_sample


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].per_sample])
def test_strict_capture_refuses_what_it_cannot_explain(name):
    case = CASES[name]
    model = case.model()
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, OutputLoss(case.loss), blocks, strict=True)
    with pytest.raises(ModelError, match="Capture cannot explain"):
        engine.rows(case.batch(4))


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_sequence_first_with_as_many_positions_as_batched():
    """Premise: with T = B the rows of a sequence-first layer add up and yet are wrong."""
    case = CASES["sequence first"]
    torch.manual_seed(1)
    model = case.model().double()
    batch = in_double(case.batch(5))
    assert batch[0].shape[:2] == (5, 5)
    engine = CaptureEngine(model, OutputLoss(case.loss), Blocks.from_model(model, "module"))
    exact = truth(model, case.loss, batch)
    torch.testing.assert_close(flat_rows(engine, batch), exact, rtol=1e-9, atol=1e-12)


HALF = list(zip(EXPLAINED, cycle([torch.bfloat16, torch.float16]), strict=False))


@pytest.mark.parametrize(("name", "dtype"), HALF)
@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_half_precision_models_give_float32_rows(name, dtype):
    torch.manual_seed(3)
    case = CASES[name]
    model = case.model().to(dtype)
    batch = tuple(t.to(dtype) if t.is_floating_point() else t for t in case.batch(4))
    engine = CaptureEngine(model, OutputLoss(case.loss), Blocks.from_model(model, "full"))
    rows = flat_rows(engine, batch)
    wide = tuple(t.double() if t.is_floating_point() else t for t in batch)
    exact = truth(dense.in_float64(model), case.loss, wide)
    assert rows.dtype == torch.float32
    error = (rows.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 2e-2, f"relative errors of the rows {error}"


def test_the_callers_hooks_still_act():
    """A hook that changes a layer's output changes the gradients accordingly."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    batch = in_double(numbers(3, targets=(2,))(4))
    engine = CaptureEngine(
        model, OutputLoss(nn.functional.mse_loss), Blocks.from_model(model, "module"), strict=True
    )
    exact = truth(model, nn.functional.mse_loss, batch)
    torch.testing.assert_close(flat_rows(engine, batch), exact, rtol=1e-9, atol=1e-12)


def engine_for(model, loss=nn.functional.mse_loss, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return CaptureEngine(model, OutputLoss(loss), blocks, **kwargs)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5, training=True)


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        y = self.inner(x).square()
        return y - y.mean(0)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.out, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 2), reentrant

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return checkpoint(self.out, h, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 2)), "dropout in"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "'1' normal"),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
            ).eval(),
            "statistics of the batch",
        ),
        (Noisy, "random"),
        (Centred, "depends on other samples"),
        (lambda: Checkpointed(True), "use_reentrant=False"),
        (lambda: nn.DataParallel(nn.Linear(3, 2)), r"Pass model\.module"),
        (lambda: torch.compile(nn.Linear(3, 2)), "_orig_mod"),
        (lambda: torch.nn.Linear(3, 2, device="meta"), "have no values where they are"),
    ],
)
def test_models_without_per_sample_gradients_are_refused(model, message):
    batch = numbers(3, targets=(2,))(4)
    with pytest.raises(ModelError, match=message):
        engine_for(model()).rows(batch)


def test_an_embedding_that_renormalises_itself_is_refused_and_not_renormalised():
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2))
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match="max_norm"):
        engine_for(model).rows((torch.randint(0, 6, (4, 2)), torch.randn(4, 2)))
    assert torch.equal(model[0].weight, before)


def test_lstm_dropout_in_training_mode_is_refused():
    case = CASES["lstm"]
    model = case.model()
    model.lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.3, batch_first=True)
    with pytest.raises(ModelError, match="'lstm' applies dropout"):
        engine_for(model).rows(case.batch(3))


def test_checkpointing_without_reentry_is_seen_through():
    torch.manual_seed(0)
    model = Checkpointed(False).double()
    batch = in_double(numbers(3, targets=(2,))(4))
    rows = flat_rows(engine_for(model, strict=True), batch)
    exact = truth(model, nn.functional.mse_loss, batch)
    torch.testing.assert_close(rows, exact, rtol=1e-9, atol=1e-12)


def test_a_parameter_that_was_frozen_later_is_named():
    model = nn.Linear(3, 2)
    engine = engine_for(model)
    model.bias.requires_grad_(False)
    with pytest.raises(ModelError, match=r"frozen or removed.*bias"):
        engine.rows(numbers(3, targets=(2,))(4))


def test_rows_of_a_sample_without_gradient_are_zero():
    """Dead units: the gradient of a sample that activates nothing is exactly zero."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.zero_()
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    rows = flat_rows(engine_for(model), (x, torch.ones(2, 1, dtype=torch.float64)))
    assert rows[0].abs().max() > 0
    assert torch.equal(rows[1], torch.zeros_like(rows[1]))
