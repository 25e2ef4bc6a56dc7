"""ExactInfluence against a dense float64 solve, and the contract with pyDVL."""

import copy
import pickle
from functools import cache

import pytest
import torch
from pydvl.influence.torch.influence_function_model import TorchInfluenceFunctionModel
from pydvl.utils.exceptions import NotFittedException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import DampingError, DataInfInfluence, ExactInfluence, SourceError
from zoo import CASES

FITTED = [1, 7, 20, 30]  # samples; blocks have 4, 5, 15, 20, 24, 25 or 44 parameters
SMALL = 1e-4  # of the largest eigenvalue of the largest block


@cache
def problem(structure="module", n=11, dtype=torch.float64):
    return Problem(dense.exact_matrix, structure, n, dtype)


def fitted(p, regularization="auto", **settings):
    return ExactInfluence(p.model, p.loss, regularization, p.structure, **settings)


def largest_eigenvalue(p):
    rows = p.rows(p.fitted).values()
    return max(float(torch.linalg.eigvalsh(g.T @ g / len(g)).max()) for g in rows)


@pytest.mark.parametrize("n", FITTED)
def test_premise_blocks_are_solved_in_either_space(n):
    widths = {
        structure: [g.shape[1] for g in problem(structure, n).rows(problem().test).values()]
        for structure in STRUCTURES
    }
    assert widths["module"] == [20, 24]
    assert widths["full"] == [44]
    assert widths["parameter_wise"] == [15, 5, 20, 4]
    assert any(d > n for all_of in widths.values() for d in all_of)
    assert any(d < n for all_of in widths.values() for d in all_of) is (n > 4)


# Values


# Each structure with each n, and each of both with each λ.
SETTINGS = [
    (structure, n, ["small", "auto", 30.0][(i + j) % 3])
    for i, structure in enumerate(STRUCTURES)
    for j, n in enumerate(FITTED)
]


@pytest.mark.parametrize(("structure", "n", "regularization"), SETTINGS)
def test_influences_are_those_of_the_dense_solve(structure, n, regularization):
    p = problem(structure, n)
    λ = {"small": SMALL * largest_eigenvalue(p)}.get(regularization, regularization)
    influence = fitted(p, λ).fit(p.batches())
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, λ))
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, λ))
    close(influence.influences(*p.train, *p.test), p.influences(p.train, p.test, λ))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, λ).diag())
    v = p.rows(p.test)
    factors = torch.cat([v[b] @ M for b, M in p.matrices(λ).items()], 1)
    blocks = influence.influence_factors_by_block(*p.test)
    close(torch.cat(list(blocks.values()), 1), factors)
    close(
        influence.influences_from_factors(influence.influence_factors(*p.test), *p.train),
        p.influences(p.test, p.train, λ),
    )


def test_a_wrong_n_or_another_inverse_is_told_apart():
    """Negative control: one sample twice, another λ, other blocks, DataInf."""
    p = problem()
    x, y = p.fitted
    exact = p.influences(p.test, p.fitted, 0.1)
    close(fitted(p, 0.1).fit([p.fitted]).influences(*p.test, *p.fitted), exact)
    wrong = [
        fitted(p, 0.1).fit([p.fitted, (x[:1], y[:1])]),
        fitted(p, 0.1001).fit([p.fitted]),
        ExactInfluence(p.model, p.loss, 0.1, "full").fit([p.fitted]),
        DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted]),
    ]
    for influence in wrong:
        with pytest.raises(AssertionError):
            close(influence.influences(*p.test, *p.fitted), exact, 1e-5)


def test_more_queries_than_training_samples_are_solved_from_the_other_side():
    p = problem(n=3)
    influence = fitted(p, 0.01).fit([p.fitted])
    close(influence.influences(*p.test, *p.fitted), p.influences(p.test, p.fitted, 0.01))
    with_mean = influence.influences_by_block(*p.train, *p.fitted)
    for block, exact in p.influences_by_block(p.train, p.fitted, 0.01).items():
        close(with_mean[block], exact)


def test_one_sample_is_datainf_and_several_are_not():
    for n, is_same in ((1, True), (2, False)):
        p = problem(n=n)
        scores = [
            kind(p.model, p.loss, 0.01).fit([p.fitted]).training_influences(*p.test)
            for kind in (ExactInfluence, DataInfInfluence)
        ]
        assert torch.allclose(*scores, rtol=1e-9, atol=1e-9) is is_same


@pytest.mark.parametrize("name", ["tied and reused", "embedding", "conv2d", "functional"])
@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_layers_of_other_kinds(name):
    torch.manual_seed(5)
    case = CASES[name]
    model = case.model().double()
    data, test = (
        tuple(t.double() if t.is_floating_point() else t for t in case.batch(k)) for k in (7, 3)
    )
    names = [n for n, _ in model.named_parameters()]
    g, v = (dense.gradients(model, case.loss, side, names) for side in (data, test))
    influence = ExactInfluence(model, case.loss, 0.1, "full", batch_size=3).fit([data])
    close(influence.training_influences(*test), v @ dense.exact_matrix(g, 0.1) @ g.T)


def test_frozen_parameters_take_no_part():
    p = Problem(dense.exact_matrix)
    p.model[0].requires_grad_(False)
    influence = ExactInfluence(p.model, p.loss, 0.05).fit(p.batches())
    assert influence.block_names == ["2"]
    names = ["2.weight", "2.bias"]
    g, v = (dense.gradients(p.model, p.loss, side, names) for side in (p.fitted, p.test))
    close(influence.training_influences(*p.test), v @ dense.exact_matrix(g, 0.05) @ g.T)


def test_blocks_and_samples_with_zero_gradients_are_fine_with_a_given_damping():
    """Premise: nothing reaches the unused layer, and the last sample has no gradient at all."""
    torch.manual_seed(1)
    model = CASES["unused"].model().double()
    x, y = (t.double() for t in CASES["unused"].batch(5))
    y[4] = model(x)[4].detach()
    names = ["used.weight", "used.bias"]
    g = dense.gradients(model, F.mse_loss, (x, y), names)
    assert g[4].abs().max() == 0
    influence = ExactInfluence(model, F.mse_loss, 0.1).fit([(x, y)])
    close(influence.training_influences(x, y), g @ dense.exact_matrix(g, 0.1) @ g.T)
    assert (influence.training_influences(x, y, by_block=True)["unused"] == 0).all()
    with pytest.raises(DampingError, match=r"\['unused'\]"):
        ExactInfluence(model, F.mse_loss).fit([(x, y)])


@pytest.mark.parametrize("n", [7, 30])
def test_float32_models_agree_to_rounding(n):
    p = problem(n=n, dtype=torch.float32)
    influence = fitted(p).fit(p.batches())
    scores = influence.training_influences(*p.test)
    assert scores.dtype == torch.float32
    error = (scores - p.influences(p.test, p.fitted, "auto")).abs()
    assert (error <= 1e-5 * p.largest_products("auto")).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_perturbation_influences(structure):
    p = problem(structure)
    influence = fitted(p, 0.02, batch_size=4).fit(p.batches())
    exact = p.perturbations(p.test, p.train, 0.02)
    assert exact.shape == (4, 6, 3)
    close(influence.influences(*p.test, *p.train, mode="perturbation"), exact)
    factors = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(factors, *p.train, mode="perturbation"), exact)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_by_block(structure):
    p = problem(structure)
    influence = fitted(p, 0.02).fit(p.batches())
    trained = influence.training_influences(*p.test, by_block=True)
    own = influence.self_influences(by_block=True)
    answers = influence.influences_by_block(*p.test, *p.train)
    factors = influence.influence_factors_by_block(*p.test)
    from_factors = influence.influences_from_factors_by_block(factors, *p.train)
    assert list(trained) == list(own) == list(answers) == list(p.members)
    for block in p.members:
        close(trained[block], p.influences_by_block(p.test, p.fitted, 0.02)[block])
        close(own[block], p.influences_by_block(p.fitted, p.fitted, 0.02)[block].diag())
        close(answers[block], p.influences_by_block(p.test, p.train, 0.02)[block])
        close(from_factors[block], p.influences_by_block(p.test, p.train, 0.02)[block])


# Order, batches and groups


def test_a_shuffled_loader_gives_the_same_inverse():
    p = problem()
    loader = DataLoader(TensorDataset(*p.fitted), batch_size=4, shuffle=True)
    influence = fitted(p).fit(loader)
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, "auto"))
    with pytest.raises(SourceError, match="random order"):
        influence.training_influences(*p.test)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_batches_do_not_matter(size):
    p = problem()
    influence = fitted(p, batch_size=3).fit(p.batches(size))
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, "auto"))


def test_self_influences_in_groups_and_of_other_data(monkeypatch):
    p = problem()
    monkeypatch.setattr("pydvl_datainf.influence.fitted_samples._GROUP_BYTES", 1000)
    influence = fitted(p, 0.01).fit(p.batches())
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, 0.01).diag())
    close(influence.self_influences(p.train), p.influences(p.train, p.train, 0.01).diag())


class MappedLoss:
    """An objective for mappings {"x", "labels"}."""

    def losses(self, model, batch):
        return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def test_mappings_carry_their_labels():
    p = problem()
    data, test, train = ({"x": x, "labels": y} for x, y in (p.fitted, p.test, p.train))
    influence = ExactInfluence(p.model, MappedLoss(), 0.02).fit([data])
    close(influence.influences(test, None, train), p.influences(p.test, p.train, 0.02))
    close(influence.training_influences(test), p.influences(p.test, p.fitted, 0.02))
    close(influence.self_influences(train), p.influences(p.train, p.train, 0.02).diag())


# Life of an instance


@pytest.mark.parametrize("second", [0.2, "auto", {"0": 0.2}])
def test_with_regularization_equals_a_new_fit(second):
    p = problem()
    changed = fitted(p, 3.0).fit(p.batches()).with_regularization(second)
    fresh = fitted(p, second).fit(p.batches())
    assert changed.damping == pytest.approx(fresh.damping, rel=1e-12)
    close(changed.training_influences(*p.test), fresh.training_influences(*p.test))


def test_pickles_and_moves_with_its_fitted_state():
    p = problem()
    influence = fitted(p).fit(p.batches())
    exact = p.influences(p.test, p.fitted, "auto")
    copied = pickle.loads(pickle.dumps(influence))
    assert copied.inverse == influence.inverse
    close(copied.training_influences(*p.test), exact)
    moved = fitted(copy.deepcopy(p)).fit(p.batches())
    assert moved.to("cpu") is moved
    close(moved.training_influences(*p.test), exact)


def test_the_contract_with_pydvl():
    p = problem("some")
    influence = fitted(p, 0.1)
    assert isinstance(influence, TorchInfluenceFunctionModel)
    assert influence.n_parameters == 40
    assert not influence.is_fitted
    assert not influence.is_thread_safe
    with pytest.raises(NotFittedException):
        influence.influences(*p.test)
    assert influence.fit([p.fitted]) is influence
    matrix = influence._solve_hvp(torch.eye(40, dtype=torch.float64))
    close(matrix, matrix.T)
    close(influence._loss_grad(*p.test) @ matrix, influence.influence_factors(*p.test))


# Refusals


def test_rows_that_would_be_computed_again_are_refused():
    p = problem()
    with pytest.raises(SourceError, match=r'rows="memory".*run_influences with rows="zarr"'):
        fitted(p, rows="recompute")
    for rows in ("auto", "memory"):
        assert fitted(p, rows=rows).rows_kept == "memory"


@pytest.mark.parametrize("copies", [1, 2])
def test_damping_that_is_lost_is_refused_with_a_remedy(copies):
    """Premise: equal gradients (2, 0, 0), whose matrix is singular but for λ."""
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[2.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64).repeat(copies, 1)
    data = x, torch.zeros(len(x), 1)
    influence = ExactInfluence(model, lambda out, y: out.sum(), 1e-20).fit([data])
    for call in (influence.training_influences, influence.influence_factors):
        with pytest.raises(DampingError, match='Use a larger λ; regularization="auto"'):
            call(*data)
    with pytest.raises(DampingError, match="larger λ"):
        influence.self_influences()
    influence.with_regularization("auto")
    close(
        influence.training_influences(*data),
        4 / (4 + 0.4 / 3) * torch.ones(len(x), len(x)).double(),
    )
