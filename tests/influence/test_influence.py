"""DataInfInfluence against the dense formulas, and the contract with pyDVL."""

import copy
import pickle
from functools import cache

import pytest
import torch
from pydvl.influence.torch.influence_function_model import TorchInfluenceFunctionModel
from pydvl.influence.torch.util import BlockMode
from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException
from pydvl.utils.exceptions import NotFittedException
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import (
    BatchError,
    BlockError,
    DampingError,
    DataInfError,
    DataInfInfluence,
    ModelError,
    ObjectiveError,
    SourceError,
)
from zoo import CASES

N, M, B = 11, 4, 6  # fitted, test and other training samples: all different, as is every width

STRUCTURES = {
    "module": {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]},
    "full": {"": ["0.weight", "0.bias", "2.weight", "2.bias"]},
    "parameter_wise": {name: [name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")},
    "some": {"a": ["0.bias", "2.weight"], "b": ["0.weight"]},
}
SPLITS = {"one batch": [11], "unequal last": [4, 4, 3], "batch of one": [5, 5, 1], "ones": [1] * 11}


class Problem:
    """A classifier with its data, and everything that the formulas say about it."""

    def __init__(self, members, dtype=torch.float64, seed=3):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
        self.loss, self.members = F.cross_entropy, members
        self.fitted, self.test, self.train = (self.data(k, dtype) for k in (N, M, B))

    @staticmethod
    def data(length, dtype):
        return torch.randn(length, 3, dtype=dtype), torch.randint(0, 4, (length,))

    def batches(self, split):
        x, y = self.fitted
        return list(zip(x.split(split), y.split(split), strict=True))

    def rows(self, data):
        model, wide = dense.in_float64(self.model), (data[0].double(), data[1])
        order = [name for name, _ in model.named_parameters()]
        return {
            block: dense.gradients(model, self.loss, wide, [n for n in order if n in names])
            for block, names in self.members.items()
        }

    def damping(self, regularization):
        rows = self.rows(self.fitted)
        if regularization == "auto":
            return {block: dense.automatic_damping(g) for block, g in rows.items()}
        return dict.fromkeys(rows, regularization)

    def exact(self, left, right, regularization):
        damping = self.damping(regularization)
        return dense.influences(self.rows(left), self.rows(self.fitted), self.rows(right), damping)

    def exact_perturbation(self, left, right, regularization):
        v, g, damping = self.rows(left), self.rows(self.fitted), self.damping(regularization)
        total = 0
        order = [name for name, _ in self.model.named_parameters()]
        for block, names in self.members.items():
            factors = v[block] @ dense.datainf_matrix(g[block], damping[block])
            mixed = dense.mixed_derivative(
                self.model, self.loss, right, [n for n in order if n in names]
            )
            total = total + torch.einsum("ia,jxa->ijx", factors, mixed)
        return total


@cache
def problem(structure="module", dtype=torch.float64):
    return Problem(STRUCTURES[structure], dtype)


def structure_argument(name):
    return STRUCTURES["some"] if name == "some" else name


def close(actual, expected):
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max())
    )


# Values


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("gradients", ["auto", "functional"])
@pytest.mark.parametrize("regularization", [1e-3, 1.0, "auto"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_influences_are_those_of_the_formula(structure, split, regularization, gradients, rows):
    p = problem(structure)
    influence = DataInfInfluence(
        p.model,
        p.loss,
        regularization,
        structure_argument(structure),
        gradients=gradients,
        rows=rows,
    ).fit(p.batches(SPLITS[split]))
    close(influence.training_influences(*p.test), p.exact(p.test, p.fitted, regularization))
    close(influence.influences(*p.test, *p.train), p.exact(p.test, p.train, regularization))
    close(influence.influences(*p.train, *p.test), p.exact(p.train, p.test, regularization))
    close(influence.influences(*p.test), p.exact(p.test, p.test, regularization))
    close(influence.self_influences(), p.exact(p.fitted, p.fitted, regularization).diag())


@pytest.mark.parametrize("regularization", [1e-3, 1.0, "auto"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_perturbation_influences_are_those_of_the_formula(structure, regularization):
    p = problem(structure)
    influence = DataInfInfluence(
        p.model, p.loss, regularization, structure_argument(structure), batch_size=4
    ).fit(p.batches([4, 4, 3]))
    exact = p.exact_perturbation(p.test, p.train, regularization)
    assert exact.shape == (M, B, 3)
    close(influence.influences(*p.test, *p.train, mode="perturbation"), exact)
    close(
        influence.influences(*p.train, *p.test, mode=InfluenceMode.Perturbation),
        p.exact_perturbation(p.train, p.test, regularization),
    )
    factors = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(factors, *p.train, mode="perturbation"), exact)


def test_negative_controls():
    """What the comparisons above must tell apart: other damping, blocks or samples."""
    p = problem()
    exact = p.exact(p.test, p.fitted, 1.0)
    x, y = p.fitted
    wrong = {
        "damping": DataInfInfluence(p.model, p.loss, 1.01).fit([p.fitted]),
        "blocks": DataInfInfluence(p.model, p.loss, 1.0, "full").fit([p.fitted]),
        "a sample twice": DataInfInfluence(p.model, p.loss, 1.0).fit([p.fitted, (x[:1], y[:1])]),
    }
    for what, influence in wrong.items():
        with pytest.raises(AssertionError):
            close(influence.influences(*p.test, *p.fitted), exact)
        assert what


@pytest.mark.parametrize("name", ["tied and reused", "embedding", "conv2d", "lstm", "functional"])
@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_layers_of_other_kinds(name, rows):
    torch.manual_seed(5)
    case = CASES[name]
    model = case.model().double()
    fitted, test = (
        tuple(t.double() if t.is_floating_point() else t for t in case.batch(k)) for k in (7, 3)
    )
    names = [n for n, _ in model.named_parameters()]
    g, v = (dense.gradients(model, case.loss, data, names) for data in (fitted, test))
    influence = DataInfInfluence(model, case.loss, 0.1, "full", rows=rows, batch_size=3)
    influence.fit([fitted])
    close(
        influence.training_influences(*test), dense.influences({"": v}, {"": g}, {"": g}, {"": 0.1})
    )


def test_float32_models_agree_to_rounding():
    p = problem(dtype=torch.float32)
    influence = DataInfInfluence(p.model, p.loss, 0.01).fit([p.fitted])
    scores = influence.training_influences(*p.test)
    assert scores.dtype == torch.float32
    v, g = p.rows(p.test), p.rows(p.fitted)
    bound = sum(v[b].norm(dim=1)[:, None] * g[b].norm(dim=1) for b in v) / 0.01
    assert ((scores - p.exact(p.test, p.fitted, 0.01)).abs() <= 1e-5 * bound).all()


def test_bfloat16_models_give_float32_scores():
    p = problem(dtype=torch.bfloat16)
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    scores = influence.training_influences(*p.test)
    assert scores.dtype == torch.float32
    v, g = p.rows(p.test), p.rows(p.fitted)
    bound = sum(v[b].norm(dim=1)[:, None] * g[b].norm(dim=1) for b in v) / 0.1
    assert ((scores - p.exact(p.test, p.fitted, 0.1)).abs() <= 5e-2 * bound).all()


def test_one_training_sample_is_the_exact_inverse():
    p = problem("full")
    x, y = p.fitted
    influence = DataInfInfluence(p.model, p.loss, 0.01, "full").fit([(x[:1], y[:1])])
    g, v = p.rows((x[:1], y[:1]))[""], p.rows(p.test)[""]
    matrix = g.T @ g + 0.01 * torch.eye(g.shape[1], dtype=g.dtype)
    close(influence.influence_factors(*p.test), torch.linalg.solve(matrix, v.T).T)


def test_samples_with_zero_gradients():
    """A sample that activates no unit takes part in n, and its influences are zero."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    model[0].weight.data.abs_()
    model[0].bias.data.zero_()
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.5, 0.1]], dtype=torch.float64)
    y = torch.ones(3, 1, dtype=torch.float64)
    names = [n for n, _ in model.named_parameters()]
    g = dense.gradients(model, F.mse_loss, (x, y), names)
    assert g[1].abs().max() == 0
    influence = DataInfInfluence(model, F.mse_loss, 0.1, "full").fit([(x, y)])
    close(influence.training_influences(x, y), g @ dense.datainf_matrix(g, 0.1) @ g.T)


# By block


@pytest.mark.parametrize("structure", STRUCTURES)
def test_blocks_add_up_and_each_is_that_of_its_formula(structure):
    p = problem(structure)
    influence = DataInfInfluence(p.model, p.loss, 0.1, structure_argument(structure))
    influence.fit(p.batches([4, 4, 3]))
    v, g, t = (p.rows(data) for data in (p.test, p.fitted, p.train))
    factors = influence.influence_factors_by_block(*p.test)
    answers = {
        "influences_by_block": influence.influences_by_block(*p.test, *p.train),
        "from factors": influence.influences_from_factors_by_block(factors, *p.train),
    }
    fitted = influence.training_influences(*p.test, by_block=True)
    own = influence.self_influences(by_block=True)
    assert influence.block_names == list(p.members) == list(factors) == list(fitted) == list(own)
    for block in p.members:
        inverse = dense.datainf_matrix(g[block], 0.1)
        close(factors[block], v[block] @ inverse)
        close(fitted[block], v[block] @ inverse @ g[block].T)
        close(own[block], (g[block] @ inverse @ g[block].T).diag())
        for answer in answers.values():
            close(answer[block], v[block] @ inverse @ t[block].T)
    close(sum(fitted.values()), influence.training_influences(*p.test))
    close(sum(own.values()), influence.self_influences())
    mixed = influence.influences_by_block(*p.test, *p.train, mode="perturbation")
    close(sum(mixed.values()), influence.influences(*p.test, *p.train, mode="perturbation"))


def test_parameter_dict_holds_detached_parameters_by_block():
    p = problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, STRUCTURES["some"])
    assert {b: list(d) for b, d in influence.parameter_dict.items()} == STRUCTURES["some"]
    assert not influence.parameter_dict["b"]["0.weight"].requires_grad


# Order and batches


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_a_shuffled_loader_gives_the_same_inverse(rows):
    p = problem()
    loader = DataLoader(TensorDataset(*p.fitted), batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    influence = DataInfInfluence(p.model, p.loss, rows=rows).fit(loader)
    close(influence.influences(*p.test, *p.train), p.exact(p.test, p.train, "auto"))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(SourceError, match="random order"):
        influence.training_influences(*p.test)
    with pytest.raises(SourceError, match="random order"):
        influence.self_influences()
    with pytest.raises(SourceError, match="random order"):
        influence.self_influences(loader)


def test_self_influences_of_other_data():
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    expected = p.exact(p.train, p.train, 0.1).diag()
    loader = DataLoader(TensorDataset(*p.train), batch_size=4)
    for data in (loader, p.train, [p.train]):
        close(influence.self_influences(data), expected)


def test_self_influences_of_no_data_are_refused():
    p = problem()
    with pytest.raises(SourceError, match="empty"):
        DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted]).self_influences([])


def test_self_influences_in_groups(monkeypatch):
    p = problem()
    monkeypatch.setattr("pydvl_datainf.influence.base._GROUP_BYTES", 1000)
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit(p.batches([2, 4, 1, 4]))
    close(influence.self_influences(), p.exact(p.fitted, p.fitted, 0.1).diag())


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_batch_size_of_gradients_does_not_matter(size):
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, batch_size=size).fit(p.batches([8, 3]))
    close(influence.training_influences(*p.test), p.exact(p.test, p.fitted, "auto"))


def test_progress_bars_are_shown_for_passes_of_several_batches_only(capsys):
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1, batch_size=2, progress=True)
    influence.fit([p.fitted])
    assert "gradients" in capsys.readouterr().err
    influence.training_influences(*p.test)
    assert "gradients" in capsys.readouterr().err
    influence.loss_gradients(*Problem.data(2, torch.float64))
    assert capsys.readouterr().err == ""


# Mappings


class Mapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class MappedLoss:
    """An objective for mappings {"x", "labels"}."""

    def losses(self, model, batch):
        return F.cross_entropy(model(x=batch["x"]), batch["labels"], reduction="none")


def test_mappings_carry_their_labels():
    p = problem()
    model = Mapped(p.model)
    fitted, test, train = ({"x": x, "labels": y} for x, y in (p.fitted, p.test, p.train))
    influence = DataInfInfluence(model, MappedLoss(), 0.1).fit([fitted])
    exact = p.exact(p.test, p.train, 0.1)
    close(influence.influences(test, None, train, None), exact)
    close(influence.influences(test), p.exact(p.test, p.test, 0.1))
    close(influence.influences_from_factors(influence.influence_factors(test), train), exact)
    close(influence.training_influences(test), p.exact(p.test, p.fitted, 0.1))
    close(influence.self_influences(train), p.exact(p.train, p.train, 0.1).diag())
    with pytest.raises(ValueError, match="y must be None"):
        influence.influences(test, p.test[1])
    with pytest.raises(BatchError, match=r"\(x, y\) batches"):
        influence.influences(test, None, train, None, "perturbation")


# Damping


def test_damping_is_what_was_used():
    p = problem()
    auto = DataInfInfluence(p.model, p.loss).fit([p.fitted])
    assert auto.damping == pytest.approx(p.damping("auto"), rel=1e-12)
    partial = DataInfInfluence(p.model, p.loss, {"2": 3}).fit([p.fitted])
    assert partial.damping == pytest.approx(p.damping("auto") | {"2": 3.0}, rel=1e-12)
    whole = DataInfInfluence(p.model, p.loss, {"2": 3, "0": 2}).fit([p.fitted])
    assert whole.damping == {"0": 2.0, "2": 3.0}


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("first", [0.5, "auto"])
@pytest.mark.parametrize("second", [0.1, "auto", {"0": 0.2}])
def test_with_regularization_equals_a_new_fit(rows, first, second):
    p = problem()
    changed = DataInfInfluence(p.model, p.loss, first, rows=rows).fit([p.fitted])
    assert changed.with_regularization(second) is changed
    fresh = DataInfInfluence(p.model, p.loss, second, rows=rows).fit([p.fitted])
    assert changed.damping == pytest.approx(fresh.damping, rel=1e-12)
    close(changed.training_influences(*p.test), fresh.training_influences(*p.test))


def test_with_regularization_before_fit_and_when_refused():
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, 0.5).with_regularization(0.1).fit([p.fitted])
    assert influence.damping == {"0": 0.1, "2": 0.1}
    with pytest.raises(DampingError):
        influence.with_regularization({"2": -1.0})
    assert influence.damping == {"0": 0.1, "2": 0.1}


class KeyBias(nn.Module):
    """Attention whose key bias has no influence on the output, but gradients of rounding noise."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        return self.out((scores.softmax(-1) @ x).mean(1))


def test_blocks_of_rounding_noise_are_refused_by_name_and_may_be_given_a_damping():
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 4), torch.randn(6, 2)
    model = KeyBias()
    influence = DataInfInfluence(model, F.mse_loss, block_structure="parameter_wise")
    with pytest.raises(DampingError, match=r"\['key.bias'\]"):
        influence.fit([(x, y)])
    assert not influence.is_fitted
    influence.with_regularization({"key.bias": 1.0}).fit([(x, y)])
    assert influence.damping["key.bias"] == 1.0


# The contract with pyDVL


def test_is_a_pydvl_influence_model():
    p = problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, STRUCTURES["some"])
    assert isinstance(influence, TorchInfluenceFunctionModel)
    assert influence.n_parameters == 40
    assert not influence.is_thread_safe
    assert not influence.is_fitted
    assert influence.fit([p.fitted]) is influence
    assert influence.is_fitted
    assert influence.influence_factors(*p.test).shape == (M, 40)
    assert influence.model_dtype == torch.float64


def test_block_modes_are_accepted():
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1, BlockMode.LAYER_WISE).fit([p.fitted])
    close(influence.training_influences(*p.test), p.exact(p.test, p.fitted, 0.1))


def test_the_inverse_is_a_symmetric_operator_on_flat_vectors():
    p = problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, STRUCTURES["some"]).fit([p.fitted])
    matrix = influence._solve_hvp(torch.eye(40, dtype=torch.float64))
    close(matrix, matrix.T)
    close(influence._loss_grad(*p.test) @ matrix, influence.influence_factors(*p.test))
    close(influence.loss_gradients(*p.test), influence._loss_grad(*p.test))


@pytest.mark.parametrize(
    "call",
    [
        lambda i, p: i.influences(*p.test),
        lambda i, p: i.influences_by_block(*p.test),
        lambda i, p: i.influence_factors(*p.test),
        lambda i, p: i.influences_from_factors(torch.zeros(1, 44), *p.test),
        lambda i, p: i.training_influences(*p.test),
        lambda i, p: i.self_influences(),
        lambda i, p: i.self_influences([p.test]),
        lambda i, p: i.damping,
    ],
)
def test_nothing_is_answered_before_fit(call):
    p = problem()
    with pytest.raises(NotFittedException):
        call(DataInfInfluence(p.model, p.loss, 0.1), p)


def test_calls_that_make_no_sense_are_refused():
    p = problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    x, y = p.train
    with pytest.raises(ValueError, match="y came without"):
        influence.influences(*p.test, None, y)
    with pytest.raises(ValueError, match="x came without"):
        influence.influences(*p.test, x)
    with pytest.raises(ValueError, match="x came without"):
        influence.influences(p.test[0])
    for args in ((*p.test,), (*p.test, *p.train)):
        with pytest.raises(UnsupportedInfluenceModeException):
            influence.influences(*args, mode="sideways")
    with pytest.raises(UnsupportedInfluenceModeException):
        influence.influences_from_factors(torch.zeros(1, 44), *p.train, mode="sideways")
    with pytest.raises(BlockError, match="44"):
        influence.influences_from_factors(torch.zeros(1, 43), *p.train)
    with pytest.raises(ObjectiveError):
        influence.influences({"x": x, "labels": y})


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"regularization": 0}, DampingError),
        ({"regularization": {"nothing": 1.0}}, DampingError),
        ({"block_structure": "modules"}, BlockError),
        ({"gradients": "fast"}, ModelError),
        ({"rows": "disk"}, SourceError),
        ({"batch_size": 0}, BatchError),
        ({"batch_size": True}, BatchError),
        ({"loss": nn.MSELoss}, ObjectiveError),
    ],
)
def test_bad_settings_are_refused_at_construction(kwargs, error):
    with pytest.raises(error) as caught:
        DataInfInfluence(**{"model": nn.Linear(3, 2), "loss": F.mse_loss} | kwargs)
    assert isinstance(caught.value, DataInfError)
    assert isinstance(caught.value, ValueError)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(BlockError, match="no trainable parameters"):
        DataInfInfluence(nn.Linear(3, 2).requires_grad_(False), F.mse_loss)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_pickles_with_its_fitted_state_and_without_duplicates(rows):
    p = problem()
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))
    data = torch.randn(2, 300), torch.randint(0, 4, (2,))
    unfitted = DataInfInfluence(model, p.loss, 0.1, rows=rows)
    assert len(pickle.dumps(unfitted)) < 1.1 * len(pickle.dumps(model)) + 2**14
    loader = DataLoader(TensorDataset(*p.fitted), batch_size=4, num_workers=2)
    influence = DataInfInfluence(p.model, p.loss, rows=rows).fit(loader)
    copied = pickle.loads(pickle.dumps(influence))
    close(copied.training_influences(*p.test), influence.training_influences(*p.test))
    assert copied.model_params.keys() == influence.model_params.keys()
    assert unfitted.fit([data]).influences(*data).shape == (2, 2)


def test_moving_to_a_device_keeps_everything():
    p = problem()
    for rows in ("memory", "recompute"):
        influence = DataInfInfluence(copy.deepcopy(p.model), p.loss, rows=rows).fit([p.fitted])
        assert influence.to("cpu") is influence
        assert influence.model_device == torch.device("cpu")
        close(influence.training_influences(*p.test), p.exact(p.test, p.fitted, "auto"))
    assert DataInfInfluence(nn.Linear(3, 2), F.mse_loss).to(torch.device("cpu")).is_fitted is False


# Models that change


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.data.mul_(1.001),
        lambda model: model[2].bias.detach().numpy().__setitem__(0, 9.0),
        lambda model: setattr(model[2], "bias", nn.Parameter(torch.zeros(4).double())),
        lambda model: model[1].register_buffer("late", torch.zeros(1)),
    ],
)
def test_a_model_that_changed_after_fit_is_noticed(rows, change):
    p = problem()
    model = copy.deepcopy(p.model)
    influence = DataInfInfluence(model, p.loss, 0.1, rows=rows).fit([p.fitted])
    change(model)
    for call in (
        lambda: influence.influences(*p.test),
        lambda: influence.influence_factors(*p.test),
        lambda: influence.influences_from_factors(torch.zeros(1, 44), *p.test),
        lambda: influence.training_influences(*p.test),
        lambda: influence.self_influences(),
    ):
        with pytest.raises(ModelError, match="changed after fit"):
            call()
    assert influence.fit([p.fitted]).influences(*p.test).shape == (M, M)


def test_a_change_that_was_undone_is_no_change():
    p = problem()
    model = copy.deepcopy(p.model)
    influence = DataInfInfluence(model, p.loss, 0.1).fit([p.fitted])
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model[0].weight.data.add_(0.0)
    assert influence.influences(*p.test).shape == (M, M)


def test_a_failed_fit_leaves_the_earlier_one():
    p = problem()
    influence = DataInfInfluence(p.model, p.loss).fit([p.fitted])
    with pytest.raises(SourceError):
        influence.fit([])
    close(influence.training_influences(*p.test), p.exact(p.test, p.fitted, "auto"))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).eval()
    data = torch.randn(5, 3), torch.randn(5, 2)
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    influence = DataInfInfluence(model, F.mse_loss, rows="recompute").fit([data])
    influence.influences(*data, *data, mode="perturbation")
    influence.training_influences(*data)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


# Perturbation


def test_perturbation_needs_inputs_with_a_derivative():
    case = CASES["embedding"]
    model = case.model()
    data = case.batch(3)
    influence = DataInfInfluence(model, case.loss, 0.1).fit([data])
    with pytest.raises(BatchError, match='mode="up"'):
        influence.influences(*data, mode="perturbation")


def test_perturbation_of_a_loss_that_is_linear_in_the_parameters_and_free_of_x():
    """The gradient does not depend on x, so its derivative by x is zero."""
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    data = torch.randn(4, 3), torch.randn(4, 2)
    influence = DataInfInfluence(model, lambda out, y: out.sum(), 0.1).fit([data])
    scores = influence.influences(*data, mode="perturbation")
    assert torch.equal(scores, torch.zeros(4, 4, 3))


class FusedAttention(nn.Module):
    """Attention by a fused kernel, which has a first derivative only."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        h = self.inner(x).unsqueeze(1)
        return F.scaled_dot_product_attention(h, h, h).mean((1, 2))


def test_layers_that_cannot_be_differentiated_twice_are_named_with_a_remedy():
    torch.manual_seed(0)
    data = torch.randn(3, 5, 4), torch.randn(3, 4)
    influence = DataInfInfluence(FusedAttention(), F.mse_loss, 0.1).fit([data])
    with pytest.raises(ModelError, match="differentiated twice"):
        influence.influences(*data, mode="perturbation")
    with sdpa_kernel(SDPBackend.MATH):
        assert influence.influences(*data, mode="perturbation").shape == (3, 3, 5, 4)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_it_knows_what_it_was_fitted_on(split, rows):
    problem = Problem(STRUCTURES["module"])
    influence = DataInfInfluence(problem.model, problem.loss, rows=rows)
    assert not influence.is_fitted_on(problem.batches(N))
    influence.fit(problem.batches(split))
    influence.training_influences(*problem.test)
    assert influence.is_fitted_on(problem.batches(N))
    assert influence.is_fitted_on(problem.batches([2, 9]))
    x, y = problem.fitted
    for other in ((x.flip(0), y.flip(0)), (x, 3 - y), (x[:-1], y[:-1]), (x.float(), y)):
        assert not influence.is_fitted_on([other])
    with torch.no_grad():
        problem.model[0].bias += 1
    assert not influence.is_fitted_on(problem.batches(N))


def test_the_order_of_batches_of_other_lengths_counts():
    """Tokens that are padded to each batch's longest."""
    config = {"num_embeddings": 7, "embedding_dim": 2}
    short, long = (torch.randint(0, 7, (3, width)) for width in (5, 7))
    model = nn.EmbeddingBag(**config).double()
    batches = [(short, torch.zeros(3, dtype=int)), (long, torch.zeros(3, dtype=int))]
    influence = DataInfInfluence(model, F.cross_entropy, 1.0).fit(batches)
    assert influence.is_fitted_on(batches)
    assert not influence.is_fitted_on(batches[::-1])


def test_a_shuffled_order_is_never_the_same():
    problem = Problem(STRUCTURES["module"])
    loader = DataLoader(TensorDataset(*problem.fitted), batch_size=N, shuffle=True)
    influence = DataInfInfluence(problem.model, problem.loss).fit(loader)
    assert not influence.is_fitted_on(problem.batches(N))


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_training_gradients_are_those_of_the_samples(rows):
    problem = Problem(STRUCTURES["module"])
    influence = DataInfInfluence(problem.model, problem.loss, rows=rows)
    influence.fit(problem.batches(SPLITS["unequal last"]))
    random_state = torch.get_rng_state()
    chunks = influence.training_gradients_by_block()
    first = next(chunks)
    torch.rand(3)  # the caller's, which must not be taken back
    moved = torch.get_rng_state()
    rest = list(chunks)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(moved, random_state)
    for block, expected in problem.rows(problem.fitted).items():
        found = torch.cat([chunk[block] for chunk in (first, *rest)])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
