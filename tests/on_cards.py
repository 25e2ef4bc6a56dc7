"""What test_cards.py runs: everything is as on the CPU, wherever model and data are."""

import io
import pickle
from functools import cache, partial

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import pretend
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    LissaInfluence,
    run_influences,
)

NAMES = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
INVERSES = {
    "datainf": (DataInfInfluence, dense.datainf_matrix),
    "exact": (ExactInfluence, dense.exact_matrix),
    "lissa": (
        partial(LissaInfluence, iterations=20_000, tolerance=1e-11),
        dense.exact_matrix,
    ),
    "hessian-free": (partial(HessianFreeInfluence, scaled=True), dense.scaled_identity),
}
METHODS = pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("datainf", "memory"),
        ("datainf", "recompute"),
        ("exact", "memory"),  # of which it needs all rows together
        ("lissa", "memory"),
        ("hessian-free", "memory"),
        ("hessian-free", "recompute"),
    ],
)
DAMPING = 0.05
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture(autouse=True, scope="module")
def cards():
    pretend.start()


class Weighted(nn.Module):
    """A loss with weights of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2, 4], dtype=torch.float64))

    def forward(self, outputs, y):
        return (self.weight * (outputs - y).square()).sum()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, 4), (n, 3)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


TRAIN, TEST = data(7, 1), data(3, 2)


def rows(loss, batch):
    return {b: dense.gradients(network(), loss, batch, names) for b, names in NAMES.items()}


@cache
def expected(inverse, test, loss=F.mse_loss):
    train, damping = rows(loss, TRAIN), dict.fromkeys(NAMES, DAMPING)
    return dense.influences(rows(loss, test), train, train, damping, inverse)


def build(method, kept, loss=F.mse_loss):
    return INVERSES[method][0](network().to(FIRST), loss, DAMPING, rows=kept)


def batches(place):
    x, y = (tensor.to(place) for tensor in TRAIN)
    return [(x[:4], y[:4]), (x[4:], y[4:])]


def close(values, truth, device):
    assert values.device == device
    torch.testing.assert_close(values.cpu(), truth, rtol=1e-9, atol=1e-12)


def assert_right(influence, method, place, device, loss=F.mse_loss):
    inverse = INVERSES[method][1]
    truth = expected(inverse, TEST, loss)
    test, train = ([tensor.to(place) for tensor in pair] for pair in (TEST, TRAIN))
    close(influence.influences(*test, *train), truth, device)
    close(influence.training_influences(*test), truth, device)
    factors = influence.influence_factors(*test).to(place)
    close(influence.influences_from_factors(factors, *train), truth, device)
    selves = expected(inverse, TRAIN, loss).diagonal()
    close(influence.self_influences(), selves, device)
    close(influence.self_influences(batches(place)), selves, device)


def test_cards_are_kept_apart():
    here, there = torch.ones(3, device=FIRST), torch.ones(3).to(SECOND)
    for other in (there, torch.ones(3)):
        with pytest.raises(RuntimeError, match="same device"):
            here + other
    with pytest.raises(TypeError, match="numpy"):
        here.numpy()
    assert pickle.loads(pickle.dumps(there)).device == SECOND


@pytest.mark.parametrize(
    ("method", "kept", "place"),
    [
        ("datainf", "memory", "cpu"),
        ("datainf", "recompute", "cuda:1"),
        ("exact", "memory", "cuda:1"),
        ("lissa", "memory", "cpu"),
        ("hessian-free", "memory", "cuda:1"),
        ("hessian-free", "recompute", "cpu"),
    ],
)
def test_data_may_be_anywhere(method, place, kept):
    influence = build(method, kept).fit(batches(place))
    assert_right(influence, method, place, FIRST)


@pytest.mark.parametrize("labels", ["all", "drawn"])
def test_labels_of_the_model_are_the_same_on_a_card(labels):
    x, y, test = TRAIN[0], torch.arange(7) % 3, (TEST[0], torch.arange(3))
    settings = {"curvature": "gauss-newton", "labels": labels}
    made = [
        ExactInfluence(network().to(device), F.cross_entropy, **settings).fit([(x, y)])
        for device in ("cpu", FIRST)
    ]
    plain, other = (influence.training_influences(*test) for influence in made)
    close(other, plain, FIRST)


def pickled(influence):
    return pickle.loads(pickle.dumps(influence))


def saved(influence):
    buffer = io.BytesIO()
    torch.save(influence, buffer, pickle_module=cloudpickle)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@METHODS
def test_a_fitted_model_may_go_elsewhere(method, kept):
    influence = build(method, kept).fit(batches("cuda:0"))
    influence.model.to(SECOND)
    assert_right(influence, method, "cpu", SECOND)
    assert_right(influence.to("cpu"), method, "cuda:1", torch.device("cpu"))


@pytest.mark.parametrize(("through", "kept"), [(pickled, "memory"), (saved, "recompute")])
def test_a_fitted_model_may_be_pickled(through, kept):
    influence = build("datainf", kept).fit(batches("cuda:0"))
    assert_right(through(influence), "datainf", "cuda:1", FIRST)
    assert_right(through(influence.to(SECOND)), "datainf", "cpu", SECOND)


def test_the_weights_of_a_loss_go_along():
    influence = build("datainf", "memory", Weighted().to(FIRST)).fit(batches("cpu"))
    assert_right(influence.to(SECOND), "datainf", "cuda:0", SECOND, Weighted())


@pytest.mark.parametrize(
    ("kept", "error", "place"),
    [("memory", 1e-9, "cuda:1"), ("recompute", 1e-9, "cpu"), ("zarr", 1e-3, "cuda:1")],
)
def test_runs(tmp_path, place, kept, error):
    influence = build("datainf", "auto")
    test = [tuple(tensor.to(place) for tensor in TEST)]
    folder = str(tmp_path / "run.zarr")
    run = run_influences(influence, test, batches(place), folder, rows=kept, progress=False)
    truth = expected(dense.datainf_matrix, TEST)
    scores, size = torch.from_numpy(run.scores[...]), truth.square().mean().sqrt()
    torch.testing.assert_close(scores / size, truth / size, rtol=0, atol=error)


class Last(nn.Module):
    """A recurrent layer, which looks whether cuDNN is on."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True)
        self.seen = set()

    def forward(self, x):
        self.seen.add(torch.backends.cudnn.enabled)
        return self.layer(x)[0][:, -1]


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize("mode", ["up", "perturbation"])
def test_recurrent_layers_do_without_cudnn(mode):
    torch.manual_seed(0)
    model = Last(nn.GRU).double().eval().to(FIRST)
    x, y = torch.randn(3, 2, 4, dtype=torch.float64), TEST[1]
    influence = DataInfInfluence(model, F.mse_loss, DAMPING, "full").fit([(x, y)])
    influence.influences(x, y, x, y, mode=mode)
    assert model.seen == {False}
    assert torch.backends.cudnn.enabled
