"""LiSSA: the iteration against a dense one, its scale, its residual, and what it converges to."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dense
from method_contract import MethodContract, assert_close, random, solved
from pydvl_datainf import ModelError, SourceError
from pydvl_datainf.inverse.lissa import MARGIN, POWERS, Lissa
from pydvl_datainf.inverse.methods import LISSA, METHODS, method_entries, method_of

NEVER = 1e-300
"""A tolerance that only an exact answer meets."""


def iterated(method, G, V, λ, make="times"):
    """The solver after all its passes, and their number."""
    solver, passes = getattr(method, make)(V, λ, len(G)), 0
    while solver.wants_rows:
        solver.add(G)
        solver.end_pass()
        passes += 1
    return solver, passes


class TestLissa(MethodContract):
    """Seven steps, without an early end, so that the answers are linear in the vectors."""

    method = Lissa(iterations=7, tolerance=NEVER)
    takes_recomputed_rows = False

    def matrix(self, G, λ):
        return dense.lissa(G, torch.eye(G.shape[1]).double(), λ, 7)[0]


@pytest.mark.parametrize("shape", [(5, 4, 9), (9, 3, 4), (1, 2, 6)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_residuals_are_the_dense_ones(shape, steps):
    n, m, d = shape
    G, V = random(1, n, d), random(2, m, d)
    solver, passes = iterated(Lissa(steps, NEVER), G, V, 0.3)
    exact, residuals = dense.lissa(G, V, 0.3, steps)
    assert passes == POWERS + steps
    assert_close(solver.result(), exact)
    torch.testing.assert_close(solver.residuals, residuals, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 4, 9), (9, 3, 4), (1, 2, 6)])
def test_converges_to_the_exact_inverse(shape):
    n, m, d = shape
    G, V = random(1, n, d), random(2, m, d)
    exact = V @ dense.exact_matrix(G, 0.2)
    method = Lissa(5000, 1e-12)
    solver, passes = iterated(method, G, V, 0.2)
    assert passes < method.passes
    assert_close(solver.result(), exact)
    assert float(solver.residuals.max()) <= 1e-12
    forms, _ = iterated(method, G, V, 0.2, "forms")
    assert_close(forms.result(), (exact * V).sum(1))


def test_each_vector_stops_by_itself():
    """What is solved beside a vector does not change its answer beyond rounding."""
    G, V = random(1, 6, 8), random(2, 5, 8)
    V[3] = 0
    V[4] = G[0]  # solved sooner
    method = Lissa(2000, 1e-3)
    together, _ = iterated(method, G, V, 0.05)
    alone = [iterated(method, G, v[None], 0.05) for v in V]
    assert len({passes for _, passes in alone}) > 2
    assert_close(together.result(), torch.cat([solver.result() for solver, _ in alone]), 1e-12)
    A = dense.gauss_newton(G) + 0.05 * torch.eye(8).double()
    left = (together.result() @ A - V).norm(dim=1) / V.norm(dim=1).clamp(min=1e-30)
    torch.testing.assert_close(together.residuals, left, rtol=1e-9, atol=1e-14)
    assert float(left.max()) <= 1e-3


def test_ten_steps_with_automatic_damping_do_not_converge():
    """As published; the residual tells so, and the answer is far from exact."""
    G, V = random(1, 50, 200), random(2, 3, 200)
    λ = dense.automatic_damping(G)
    exact = V @ dense.exact_matrix(G, λ)
    solver, _ = iterated(Lissa(10, 1e-2), G, V, λ)
    assert float(solver.residuals.min()) > 0.3
    assert float((solver.result() - exact).norm() / exact.norm()) > 0.3


@given(
    n=st.integers(1, 12),
    d=st.integers(1, 12),
    copies=st.booleans(),
    spread=st.floats(0, 3),
    λ=st.floats(1e-3, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_scale_is_at_least_the_largest_eigenvalue(n, d, copies, spread, λ, seed):
    G = random(seed, n, d) * 10 ** (spread * random(seed + 1, d))
    G = G[:1].expand(n, d) if copies else G
    solver, _ = iterated(Lissa(1, 1e-2), G, G[:1], λ)
    H = dense.gauss_newton(G)
    largest = float(torch.linalg.eigvalsh(H)[-1]) + λ
    assert largest * (1 - 1e-12) <= solver.s <= MARGIN * largest + 1e-12 * largest
    assert solver.s <= (float(H.trace()) + λ) * (1 + 1e-12)


@given(seed=st.integers(0, 1000), c=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_order_copies_and_the_size_of_gradients(seed, c):
    G, V, method = random(seed, 6, 4), random(seed + 1, 3, 4), Lissa(40, 1e-4)
    once = iterated(method, G, V, 0.1)[0].result()
    assert_close(iterated(method, G.flip(0), V, 0.1)[0].result(), once)
    assert_close(iterated(method, torch.cat([G, G]), V, 0.1)[0].result(), once)
    assert_close(iterated(method, c * G, V, c * c * 0.1)[0].result() * c * c, once, 1e-8)
    forms = iterated(method, G, G, 0.1, "forms")[0].result()
    assert (forms >= 0).all()


def test_the_same_rows_give_the_same_bits():
    G, V = random(1, 6, 4), random(2, 3, 4)
    torch.manual_seed(1)
    first, _ = solved(LISSA.times, G, V, 0.1, 2)
    torch.manual_seed(2)
    assert torch.equal(solved(LISSA.times, G, V, 0.1, 2)[0], first)


@pytest.mark.parametrize("iterations", [0, -1, True])
def test_iterations_that_are_no_count_are_refused(iterations):
    with pytest.raises(ModelError, match="iterations must be a positive number"):
        Lissa(iterations=iterations)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_tolerances_that_are_not_positive_are_refused(tolerance):
    with pytest.raises(ModelError, match="tolerance must be a positive number"):
        Lissa(tolerance=tolerance)


def test_recomputed_rows_are_refused_with_a_remedy():
    with pytest.raises(SourceError, match=r'up to 70 times.*Use rows="memory"'):
        Lissa(iterations=50).check_rows("recompute")


def test_a_residual_above_the_tolerance_is_warned_of_with_remedies():
    method = Lissa(iterations=50, tolerance=0.1)
    with pytest.warns(
        UserWarning, match=r"after 50 iterations.*of 0\.5, where 0\.1.*damping_scale"
    ):
        method.warn_of(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.warn_of(0.1)


def test_settings_are_told_and_come_back():
    assert method_of(method_entries(Lissa(7, 0.5))) == Lissa(7, 0.5) != LISSA
    assert "7 times or to a residual of 0.5" in Lissa(7, 0.5).formula
    assert all(method_of(method_entries(method)) == method for method in METHODS.values())
    assert method_entries(METHODS["DataInf"]) == {"method": "DataInf"}
    with pytest.raises(TypeError):
        method_of({"method": "DataInf", "method settings": {"iterations": 3}})


def test_operations_are_those_of_all_passes():
    """Two products of n d entries for each vector in a step, and for one in a power iteration."""
    assert Lissa(7).flops(10, 3, 5) == 2 * 2 * 10 * 5 * (20 + 7 * 3)
