"""HessianFreeInfluence against plain products of gradients, as they are and divided by λ."""

import pickle
from functools import cache

import pytest
import torch
from pydvl.utils.exceptions import NotFittedException
from torch import nn
from torch.nn import functional as F

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import DampingError, HessianFreeInfluence
from zoo import CASES

λ = 0.3  # a plain instance has none, and its oracle is given 1
PLAIN, SCALED = {}, {"scaled": True}


@cache
def problem(structure="module", n=11, dtype=torch.float64):
    return Problem(dense.scaled_identity, structure, n, dtype)


def plain(p, **settings):
    return HessianFreeInfluence(p.model, p.loss, "auto", p.structure, **settings)


def scaled(p, regularization="auto", **settings):
    return HessianFreeInfluence(
        p.model, p.loss, regularization, p.structure, scaled=True, **settings
    )


def assert_all_answers(influence, p, regularization):
    """Every way to ask gives products of gradients, divided by λ."""
    exact = p.influences(p.test, p.train, regularization)
    close(influence.influences(*p.test, *p.train), exact)
    close(influence.influences(*p.train, *p.test), exact.T)
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, regularization))
    own = p.influences(p.fitted, p.fitted, regularization).diag()
    close(influence.self_influences(), own)
    close(influence.self_influences(p.train), p.influences(p.train, p.train, regularization).diag())
    factors = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(factors, *p.train), exact)
    by_block = influence.influences_by_block(*p.test, *p.train)
    for block, of_block in p.influences_by_block(p.test, p.train, regularization).items():
        close(by_block[block], of_block)
    close(
        influence.influences(*p.test, *p.train, mode="perturbation"),
        p.perturbations(p.test, p.train, regularization),
    )


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_plain_products(structure, rows):
    p = problem(structure)
    influence = plain(p, rows=rows).fit(p.batches())
    assert influence.damping == dict.fromkeys(p.members, 1.0)
    assert_all_answers(influence, p, 1.0)
    close(
        influence.influence_factors_by_block(*p.test)[influence.block_names[0]],
        p.rows(p.test)[influence.block_names[0]],
    )


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("regularization", [λ, "auto"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_products_divided_by_the_damping(structure, regularization, rows):
    p = problem(structure)
    influence = scaled(p, regularization, rows=rows).fit(p.batches())
    assert influence.damping == pytest.approx(p.damping(regularization), rel=1e-12)
    assert_all_answers(influence, p, regularization)


def test_training_data_matters_to_the_damping_alone():
    """Negative control too: with λ from other data, scaled scores differ."""
    p = problem()
    for kind, is_same in ((plain, True), (scaled, False)):
        fits = [kind(p).fit([data]).influences(*p.test) for data in (p.fitted, p.train)]
        assert torch.allclose(*fits, rtol=1e-3) is is_same
    with pytest.raises(AssertionError):
        assert_all_answers(plain(p).fit([p.fitted]), p, 1.001)


def test_one_sample():
    p = problem(n=1)
    assert_all_answers(plain(p).fit([p.fitted]), p, 1.0)
    assert_all_answers(scaled(p).fit([p.fitted]), p, "auto")


@pytest.mark.parametrize("name", ["tied and reused", "functional"])
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
    influence = HessianFreeInfluence(model, case.loss).fit([data])
    close(influence.training_influences(*test), v @ g.T)


@pytest.mark.parametrize("settings", [PLAIN, SCALED])
def test_float32_models_agree_to_rounding(settings):
    p = problem(dtype=torch.float32)
    influence = HessianFreeInfluence(p.model, p.loss, **settings).fit(p.batches())
    scores, regularization = influence.training_influences(*p.test), "auto" if settings else 1.0
    assert scores.dtype == torch.float32
    error = (scores - p.influences(p.test, p.fitted, regularization)).abs()
    assert (error <= 1e-5 * p.largest_products(regularization)).all()


def test_blocks_without_gradients_are_fine_without_damping_and_refused_by_name_with():
    torch.manual_seed(1)
    model = CASES["unused"].model()
    data = CASES["unused"].batch(5)
    influence = HessianFreeInfluence(model, F.mse_loss).fit([data])
    assert influence.damping == {"used": 1.0, "unused": 1.0}
    assert (influence.influences_by_block(*data)["unused"] == 0).all()
    with pytest.raises(DampingError, match=r"\['unused'\].*regularization="):
        HessianFreeInfluence(model, F.mse_loss, scaled=True).fit([data])
    given = HessianFreeInfluence(model, F.mse_loss, {"unused": 2.0}, scaled=True).fit([data])
    assert given.damping["unused"] == 2.0


def test_gradients_of_rounding_alone_have_no_influence_without_damping():
    """All gradients are zero, from which no automatic damping follows."""
    model = nn.Linear(3, 1, bias=False).double()
    data = torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    influence = HessianFreeInfluence(model, F.mse_loss).fit([data])
    assert (influence.training_influences(*data) == 0).all()


@pytest.mark.parametrize("regularization", [1.0, λ, {"0": λ}, {}, 0, "none", None])
def test_a_regularization_that_would_not_be_used_is_refused(regularization):
    p = problem()
    with pytest.raises(DampingError, match="scaled=True"):
        HessianFreeInfluence(p.model, p.loss, regularization)
    influence = plain(p)
    with pytest.raises(DampingError, match="scaled=True"):
        influence.with_regularization(regularization)
    assert influence.with_regularization("auto").fit([p.fitted]).damping == {"0": 1.0, "2": 1.0}


def test_with_regularization_equals_a_new_fit():
    p = problem()
    changed = scaled(p, 3.0).fit([p.fitted])
    for regularization in (λ, "auto", {"0": λ}):
        changed.with_regularization(regularization)
        fresh = scaled(p, regularization).fit([p.fitted])
        assert changed.damping == pytest.approx(fresh.damping, rel=1e-12)
        close(changed.influences(*p.test), fresh.influences(*p.test))


@pytest.mark.parametrize("kind", [plain, scaled])
def test_pickles_copies_and_moves_with_its_fitted_state(kind):
    p = problem()
    influence = kind(p).fit(p.batches())
    expected = influence.training_influences(*p.test)
    copied = pickle.loads(pickle.dumps(influence))
    assert copied.inverse == influence.inverse
    close(copied.training_influences(*p.test), expected)
    close(influence.to("cpu").training_influences(*p.test), expected)
    twin = influence.unfitted()
    assert twin.inverse == influence.inverse
    close(twin.fit(p.batches()).training_influences(*p.test), expected)


@pytest.mark.parametrize("kind", [plain, scaled])
def test_nothing_is_answered_before_fit(kind):
    p = problem()
    for call in (HessianFreeInfluence.influences, HessianFreeInfluence.training_influences):
        with pytest.raises(NotFittedException):
            call(kind(p), *p.test)
