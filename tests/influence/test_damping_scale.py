"""damping_scale: λ as a multiple of the automatic one."""

import pytest

import dense
from fitted import Problem, close
from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    LissaInfluence,
)
from pydvl_datainf.influence import METHODS

CLASSES = [DataInfInfluence, ExactInfluence, LissaInfluence]


def automatic(p):
    return {b: dense.automatic_damping(g) for b, g in p.rows(p.fitted).items()}


@pytest.mark.parametrize("build", [*CLASSES, METHODS["scaled-hessian-free"]])
@pytest.mark.parametrize("scale", [10, 0.25])
def test_automatic_damping_is_multiplied(build, scale):
    p = Problem(dense.datainf_matrix)
    influence = build(p.model, p.loss, damping_scale=scale).fit(p.batches())
    assert influence.damping_scale == scale
    assert influence.damping == pytest.approx(
        {b: scale * λ for b, λ in automatic(p).items()}, rel=1e-12
    )


def test_influences_are_those_of_that_damping():
    p = Problem(dense.datainf_matrix)
    exact = sum(
        p.rows(p.test)[b] @ dense.datainf_matrix(g, 10 * dense.automatic_damping(g)) @ g.T
        for b, g in p.rows(p.fitted).items()
    )
    influence = DataInfInfluence(p.model, p.loss, damping_scale=10).fit(p.batches())
    close(influence.training_influences(*p.test), exact)


def test_blocks_with_a_damping_of_their_own_keep_it():
    p = Problem(dense.datainf_matrix)
    influence = DataInfInfluence(p.model, p.loss, {"0": 0.3}, damping_scale=2).fit(p.batches())
    assert influence.damping == pytest.approx({"0": 0.3, "2": 2 * automatic(p)["2"]}, rel=1e-12)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_it_may_be_changed_and_taken_back(rows):
    p = Problem(dense.datainf_matrix)
    influence = DataInfInfluence(p.model, p.loss, 0.7, rows=rows).fit(p.batches())
    influence.with_regularization("auto", damping_scale=10)
    once = automatic(p)
    assert influence.damping == pytest.approx({b: 10 * λ for b, λ in once.items()}, rel=1e-12)
    assert influence.unfitted().fixed_damping == influence.damping
    assert influence.unfitted(fix_damping=False).fit(p.batches()).damping == pytest.approx(
        influence.damping, rel=1e-12
    )
    assert influence.with_regularization("auto").damping == pytest.approx(once, rel=1e-12)
    assert influence.damping_scale == 1


@pytest.mark.parametrize("build", CLASSES)
@pytest.mark.parametrize("given", [0.5, {"0": 1.0, "2": 2.0}])
def test_it_is_refused_beside_given_damping(build, given):
    p = Problem(dense.datainf_matrix)
    with pytest.raises(DampingError, match=r"damping_scale multiplies.*every block was given its"):
        build(p.model, p.loss, given, damping_scale=2)
    influence = build(p.model, p.loss).fit(p.batches())
    before = influence.damping
    with pytest.raises(DampingError, match="every block was given its own"):
        influence.with_regularization(given, damping_scale=2)
    assert influence.damping == before


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True, "10"])
def test_it_must_be_a_positive_number(scale):
    p = Problem(dense.datainf_matrix)
    with pytest.raises(DampingError, match=r"damping_scale must be (a )?positive"):
        DataInfInfluence(p.model, p.loss, damping_scale=scale)


def test_plain_products_have_none():
    p = Problem(dense.datainf_matrix)
    with pytest.raises(DampingError, match="a regularization or damping_scale would not be used"):
        HessianFreeInfluence(p.model, p.loss, damping_scale=2)
    influence = HessianFreeInfluence(p.model, p.loss).fit(p.batches())
    with pytest.raises(DampingError, match="would not be used"):
        influence.with_regularization("auto", damping_scale=2)
    assert influence.damping == {"0": 1.0, "2": 1.0}
