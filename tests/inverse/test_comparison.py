"""How far an inverse is from the exact one, against dense matrices and SciPy."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import dense
from pydvl_datainf.inverse.agreement import compared_with_exact
from pydvl_datainf.inverse.methods import DATAINF, EXACT, SCALED_HESSIAN_FREE

WIDTHS = {"narrow": 3, "wide": 12, "single": 1}
DAMPING = {"narrow": 0.02, "wide": 1.5, "single": 0.3}
N, M = 7, 4
MATRICES = {
    "DataInf": (DATAINF, dense.datainf_matrix),
    "scaled Hessian-free": (SCALED_HESSIAN_FREE, dense.scaled_identity),
}


def random(seed, length, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (b, torch.randn(length, d, generator=generator).to(dtype)) for b, d in WIDTHS.items()
    )


def expected(matrix, V, G, damping=DAMPING):
    """Errors, cosines, score error and mean rank correlation, in float64."""
    V, G = ({b: v.double() for b, v in side.items()} for side in (V, G))
    A = {b: V[b] @ matrix(G[b], damping[b]) for b in V}
    E = {b: V[b] @ dense.exact_matrix(G[b], damping[b]) for b in V}
    S, T = (sum(part[b] @ G[b].T for b in V) for part in (A, E))
    return {
        "errors": {b: float((A[b] - E[b]).norm() / E[b].norm()) for b in V},
        "cosines": {b: float((A[b] * E[b]).sum() / A[b].norm() / E[b].norm()) for b in V},
        "score_error": float((S - T).norm() / T.norm()),
        "rank_correlation": float(
            np.mean([spearmanr(s, t).statistic for s, t in zip(S, T, strict=True)])
        ),
    }


def assert_same(found, exact, rel=1e-9):
    for name, value in exact.items():
        assert getattr(found, name) == pytest.approx(value, rel=rel, abs=1e-12), name


@pytest.mark.parametrize("method", MATRICES)
@pytest.mark.parametrize("n", [2, N, 30])
def test_equals_the_dense_computation(method, n):
    inverse, matrix = MATRICES[method]
    V, G = random(1, M), random(2, n)
    found, exact = compared_with_exact(inverse, V, G, DAMPING), expected(matrix, V, G)
    assert list(found.errors) == list(WIDTHS)
    assert max(found.errors.values()) > 0.1  # the premise: there is something to compare
    assert_same(found, exact)


def test_a_wrong_n_or_block_is_told_apart():
    """Negative control: other rows and another order of blocks give other numbers."""
    V, G = random(1, M), random(2, N)
    found = compared_with_exact(DATAINF, V, G, DAMPING)
    fewer = OrderedDict((b, g[:-1]) for b, g in G.items())
    with pytest.raises(AssertionError):
        assert_same(found, expected(dense.datainf_matrix, V, fewer))
    with pytest.raises(AssertionError):
        assert_same(found, expected(dense.datainf_matrix, V, G, dict.fromkeys(WIDTHS, 0.3)))


def test_the_exact_inverse_has_no_error():
    found = compared_with_exact(EXACT, random(1, M), random(2, N), DAMPING)
    assert found.errors == dict.fromkeys(WIDTHS, 0.0)
    assert found.score_error == 0.0
    assert found.cosines == pytest.approx(dict.fromkeys(WIDTHS, 1.0), abs=1e-15)
    assert found.rank_correlation == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("inverse", [DATAINF, SCALED_HESSIAN_FREE, EXACT])
@pytest.mark.parametrize("λ", [1e-3, 1.0, 1e9])
def test_cosines_and_rank_correlations_do_not_pass_one(inverse, λ):
    for seed in range(20):
        found = compared_with_exact(
            inverse, random(seed, M), random(seed + 20, N), dict.fromkeys(WIDTHS, λ)
        )
        assert max(found.cosines.values()) <= 1
        assert found.rank_correlation <= 1


def test_one_sample_has_an_error_of_rounding_and_no_ranks():
    V, G = random(1, M), random(2, 1)
    found = compared_with_exact(DATAINF, V, G, DAMPING)
    assert max(found.errors.values()) < 1e-12
    assert found.score_error < 1e-12
    assert found.rank_correlation is None
    # Negative control: without curvature one sample is not exact.
    assert compared_with_exact(SCALED_HESSIAN_FREE, V, G, DAMPING).score_error > 0.1


def test_vectors_of_zeros_have_no_error():
    V = random(1, M) | {"wide": torch.zeros(M, WIDTHS["wide"], dtype=torch.float64)}
    found = compared_with_exact(DATAINF, V, random(2, N), DAMPING)
    assert (found.errors["wide"], found.cosines["wide"]) == (0.0, 1.0)
    assert found.errors["narrow"] > 0


def test_rows_of_zeros_have_no_error_and_no_ranks():
    G = OrderedDict((b, 0 * g) for b, g in random(2, N).items())
    found = compared_with_exact(DATAINF, random(1, M), G, DAMPING)
    assert found.errors == pytest.approx(dict.fromkeys(WIDTHS, 0.0), abs=1e-15)
    assert found.score_error == 0.0
    assert found.rank_correlation is None


def test_test_samples_without_ranks_are_left_out_of_the_mean():
    V, G = random(1, M), random(2, N)
    zero = OrderedDict((b, torch.cat([v, 0 * v[:2]])) for b, v in V.items())
    with_zero, without = (compared_with_exact(DATAINF, v, G, DAMPING) for v in (zero, V))
    assert with_zero.rank_correlation == pytest.approx(without.rank_correlation, rel=1e-12)


def test_equal_influences_share_a_rank():
    """Premise: training samples are there twice, so that each score has an equal one."""
    V = random(1, M)
    G = OrderedDict((b, torch.cat([g, g])) for b, g in random(2, 4).items())
    found = compared_with_exact(DATAINF, V, G, DAMPING)
    assert_same(found, expected(dense.datainf_matrix, V, G))


def test_float32_agrees_to_rounding():
    V, G = random(1, M, torch.float32), random(2, N, torch.float32)
    found = compared_with_exact(DATAINF, V, G, DAMPING)
    assert_same(found, expected(dense.datainf_matrix, V, G), rel=1e-3)
