"""DataInfInfluence against the dense formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from fitted import SPLITS, STRUCTURES, close, datainf_problem
from pydvl_datainf import DataInfInfluence
from zoo import CASES

# Each value of a setting with each of every other.
PAIRS = [
    (
        structure,
        split,
        [1e-3, 1.0, "auto"][(i + j) % 3],
        ["auto", "functional"][(i + j // 2) % 2],
        ["memory", "recompute"][(i + j) % 2],
    )
    for i, structure in enumerate(STRUCTURES)
    for j, split in enumerate(SPLITS)
]


@pytest.mark.parametrize(("structure", "split", "regularization", "gradients", "rows"), PAIRS)
def test_influences_are_those_of_the_formula(structure, split, regularization, gradients, rows):
    p = datainf_problem(structure)
    influence = DataInfInfluence(
        p.model,
        p.loss,
        regularization,
        p.structure,
        gradients=gradients,
        rows=rows,
    ).fit(p.cut(SPLITS[split]))
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, regularization))
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, regularization))
    close(influence.influences(*p.train, *p.test), p.influences(p.train, p.test, regularization))
    close(influence.influences(*p.test), p.influences(p.test, p.test, regularization))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, regularization).diag())


def test_negative_controls():
    """What the comparisons above must tell apart: other damping, blocks or samples."""
    p = datainf_problem()
    exact = p.influences(p.test, p.fitted, 1.0)
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
    p = datainf_problem(dtype=torch.float32)
    influence = DataInfInfluence(p.model, p.loss, 0.01).fit([p.fitted])
    scores = influence.training_influences(*p.test)
    assert scores.dtype == torch.float32
    v, g = p.rows(p.test), p.rows(p.fitted)
    bound = sum(v[b].norm(dim=1)[:, None] * g[b].norm(dim=1) for b in v) / 0.01
    assert ((scores - p.influences(p.test, p.fitted, 0.01)).abs() <= 1e-5 * bound).all()


def test_bfloat16_models_give_float32_scores():
    p = datainf_problem(dtype=torch.bfloat16)
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    scores = influence.training_influences(*p.test)
    assert scores.dtype == torch.float32
    v, g = p.rows(p.test), p.rows(p.fitted)
    bound = sum(v[b].norm(dim=1)[:, None] * g[b].norm(dim=1) for b in v) / 0.1
    assert ((scores - p.influences(p.test, p.fitted, 0.1)).abs() <= 5e-2 * bound).all()


def test_one_training_sample_is_the_exact_inverse():
    p = datainf_problem("full")
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
    p = datainf_problem(structure)
    influence = DataInfInfluence(p.model, p.loss, 0.1, p.structure)
    influence.fit(p.cut([4, 4, 3]))
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
    p = datainf_problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, p.structure)
    assert {b: list(d) for b, d in influence.parameter_dict.items()} == STRUCTURES["some"]
    assert not influence.parameter_dict["b"]["0.weight"].requires_grad
