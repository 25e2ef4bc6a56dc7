"""approximation_error against the same comparison of dense matrices."""

import pickle
from functools import cache

import numpy as np
import pytest
import torch
from pydvl.utils.exceptions import NotFittedException
from scipy.stats import spearmanr
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    SourceError,
    approximation_error,
)

ALL = [pytest.param(m, id=m) for m in ("datainf", "scaled")]
SAMPLES = {2: [0, 5], 3: [0, 3, 7], 4: [0, 2, 5, 8], 11: range(11), 99: range(11)}


def made(method, p, regularization="auto", **settings):
    kinds = {"datainf": DataInfInfluence, "exact": ExactInfluence, "scaled": HessianFreeInfluence}
    more = {"scaled": True} if method == "scaled" else {}
    return kinds[method](p.model, p.loss, regularization, p.structure, **settings, **more)


@cache
def problem(method="datainf", structure="module", n=11, dtype=torch.float64):
    matrix = {"datainf": dense.datainf_matrix, "exact": dense.exact_matrix}
    return Problem(matrix.get(method, dense.scaled_identity), structure, n, dtype)


def expected(p, regularization, chosen):
    """Errors, cosines, score error and rank correlation over the chosen training samples."""
    v, damping = p.rows(p.test), p.damping(regularization)
    g = {block: rows[list(chosen)] for block, rows in p.rows(p.fitted).items()}
    A = {b: v[b] @ p.inverse(g[b], damping[b]) for b in v}
    E = {b: v[b] @ dense.exact_matrix(g[b], damping[b]) for b in v}
    S, T = (sum(part[b] @ g[b].T for b in v) for part in (A, E))
    ranks = [spearmanr(s, t).statistic for s, t in zip(S, T, strict=True)]
    return {
        "errors": [float((A[b] - E[b]).norm() / E[b].norm()) for b in v],
        "cosines": [float((A[b] * E[b]).sum() / A[b].norm() / E[b].norm()) for b in v],
        "score_error": float((S - T).norm() / T.norm()),
        "rank_correlation": float(np.mean(ranks)),
    }


def assert_same(found, exact, rel=1e-8):
    for name, value in exact.items():
        assert getattr(found, name) == pytest.approx(value, rel=rel, abs=1e-12), name


@pytest.mark.parametrize("regularization", [1e-3, "auto"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("method", ALL)
def test_equals_the_dense_computation(method, structure, regularization):
    p = problem(method, structure)
    influence = made(method, p, regularization).fit(p.batches())
    found = approximation_error(influence, *p.test)
    assert found.blocks == tuple(p.members)
    assert (found.n, found.m) == (11, 4)
    assert found.widths.tolist() == [g.shape[1] for g in p.rows(p.test).values()]
    assert found.damping == pytest.approx(list(p.damping(regularization).values()), rel=1e-12)
    assert found.errors.min() > 1e-3  # the premise: there is something to compare
    assert_same(found, expected(p, regularization, range(11)))


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_fewer_samples_are_evenly_spaced_and_each_is_taken_once(samples, rows):
    """With the λ of all samples."""
    p = problem()
    influence = made("datainf", p, rows=rows).fit(p.batches(4))
    found = approximation_error(influence, *p.test, samples=samples)
    assert found.n == len(SAMPLES[samples])
    assert_same(found, expected(p, "auto", SAMPLES[samples]))


def test_other_samples_give_other_numbers():
    """Negative control."""
    p = problem()
    found = approximation_error(made("datainf", p).fit([p.fitted]), *p.test, samples=3)
    with pytest.raises(AssertionError):
        assert_same(found, expected(p, "auto", [0, 1, 2]), 1e-4)
    with pytest.raises(AssertionError):
        assert_same(found, expected(p, "auto", range(11)), 1e-4)


def test_none_means_all_and_the_default_is_a_bound():
    p = problem(n=30)
    influence = made("datainf", p).fit([p.fitted])
    assert approximation_error(influence, *p.test, samples=None).n == 30
    big = p.batches().dataset
    loader = DataLoader(
        TensorDataset(*(t.repeat(20, *[1] * (t.ndim - 1)) for t in big.tensors)), 64
    )
    assert approximation_error(influence.fit(loader), *p.test).n == 512


@pytest.mark.parametrize("size", [1, 3, 5, 11])
@pytest.mark.parametrize("samples", [4, None])
def test_the_batches_of_the_loader_do_not_matter(size, samples):
    p = problem()
    found, whole = (
        approximation_error(made("datainf", p).fit(p.batches(s)), *p.test, samples=samples)
        for s in (size, 11)
    )
    for name in ("errors", "cosines", "score_error", "rank_correlation", "damping"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_the_exact_inverse_has_no_error():
    p = problem("exact")
    found = approximation_error(made("exact", p).fit(p.batches()), *p.test)
    assert found.errors.tolist() == [0.0, 0.0]
    assert found.score_error == 0.0
    assert found.cosines == pytest.approx([1.0, 1.0], abs=1e-15)
    assert found.rank_correlation == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(("n", "samples"), [(1, None), (1, 5), (11, 1)])
def test_one_training_sample(n, samples):
    """For which DataInf is exact."""
    p = problem(n=n)
    influence = made("datainf", p).fit([p.fitted])
    found = approximation_error(influence, *p.test, samples=samples)
    assert found.n == 1
    assert found.errors.max() < 1e-9
    assert found.score_error < 1e-9
    assert found.rank_correlation is None
    scaled = approximation_error(made("scaled", p).fit([p.fitted]), *p.test, samples=samples)
    assert scaled.score_error > 0.1  # the negative control


def test_a_shuffled_loader_is_fine():
    p = problem()
    loader = DataLoader(TensorDataset(*p.fitted), 4, shuffle=True)
    found = approximation_error(made("datainf", p).fit(loader), *p.test)
    assert_same(found, expected(p, "auto", range(11)))


def test_float32_agrees_to_rounding():
    p = problem(dtype=torch.float32)
    found = approximation_error(made("datainf", p, 0.01).fit(p.batches()), *p.test)
    assert found.errors.dtype == np.float64
    assert_same(found, expected(p, 0.01, range(11)), 1e-4)


class MappedLoss:
    """An objective for mappings {"x", "labels"}."""

    def losses(self, model, batch):
        loss = torch.nn.functional.cross_entropy
        return loss(model(batch["x"]), batch["labels"], reduction="none")


def test_mappings_carry_their_labels():
    p = problem()
    data, test = ({"x": x, "labels": y} for x, y in (p.fitted, p.test))
    influence = DataInfInfluence(p.model, MappedLoss()).fit([data])
    assert_same(approximation_error(influence, test), expected(p, "auto", range(11)))


def test_the_influence_model_stays_as_it_was():
    p = problem()
    influence = made("datainf", p).fit(p.batches())
    before = influence.training_influences(*p.test)
    approximation_error(influence, *p.test, samples=3)
    assert torch.equal(influence.training_influences(*p.test), before)
    close(before, p.influences(p.test, p.fitted, "auto"))


def test_pickles():
    p = problem()
    found = approximation_error(made("datainf", p).fit([p.fitted]), *p.test)
    assert pickle.loads(pickle.dumps(found)).errors.tolist() == found.errors.tolist()


# Refusals


def test_products_without_damping_approximate_nothing():
    p = problem()
    influence = HessianFreeInfluence(p.model, p.loss).fit([p.fitted])
    with pytest.raises(DampingError, match=r"HessianFreeInfluence\(scaled=True\)"):
        approximation_error(influence, *p.test)


@pytest.mark.parametrize("method", ["datainf", "exact", "scaled"])
@pytest.mark.parametrize("samples", [3, None])
def test_a_model_that_is_not_fitted_is_refused(method, samples):
    p = problem()
    with pytest.raises(NotFittedException):
        approximation_error(made(method, p), *p.test, samples=samples)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True, "all"])
def test_samples_must_be_a_positive_number(samples):
    p = problem()
    with pytest.raises(SourceError, match="positive number or None"):
        approximation_error(made("datainf", p).fit([p.fitted]), *p.test, samples=samples)
