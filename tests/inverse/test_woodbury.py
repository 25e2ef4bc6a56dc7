"""The exact inverse against dense solves, in either space, and its identities with the others."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dense
from pydvl_datainf import DampingError
from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.sherman_morrison import DataInf
from pydvl_datainf.inverse.woodbury import Exact, InParameters, InSamples

EPS = torch.finfo(torch.float64).eps


def random(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fed(make, G, V, λ):
    """The result of a solver that was fed the rows in one piece."""
    solver = make(V, λ, len(G))
    solver.add(G)
    solver.end_pass()
    return solver.result()


solved = partial(fed, Exact().times)
quadratic_form = partial(fed, Exact().forms)
datainf = partial(fed, DataInf().times)


def matrix(solve, G, λ):
    """What an inverse is as a matrix."""
    return solve(G, torch.eye(G.shape[1], dtype=G.dtype), λ)


def largest_eigenvalue(G):
    return float(torch.linalg.eigvalsh(G.T @ G / len(G)).max())


def assert_close(actual, exact, λ, bound=1e-9):
    """Relative to v/λ, the most that an inverse makes of a vector."""
    torch.testing.assert_close(actual, exact, rtol=bound, atol=bound / λ)


problems = st.tuples(
    st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5)
).map(lambda p: (random(p[0], p[1], p[2]), random(p[0] + 1, p[3], p[2])))
dampings = st.sampled_from([1e-3, 0.1, 1.0, 30.0])

SHAPES = {"samples": (3, 8), "parameters": (8, 3), "equal": (5, 5), "one sample": (1, 4)}
SHARES = [1e-6, 1e-3, 0.1, 100.0]  # λ as a share of the largest eigenvalue of H


# Against dense solves


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_block_is_solved_in_the_smaller_space(n):
    """And there the rows are not held, unless the space is that of the samples."""
    exact, V = Exact(), random(1, 2, 4)
    space = InSamples if n < 4 else InParameters
    assert [type(make(V, 0.1, n)) for make in (exact.times, exact.forms)] == [space, space]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("space", SHAPES)
def test_elementwise_equal_to_the_dense_solve(space, share):
    n, d = SHAPES[space]
    G, V = random(1, n, d), random(2, 6, d)
    λ = share * largest_eigenvalue(G)
    exact = dense.exact_matrix(G, λ)
    largest = float(exact.abs().max())
    times, forms = solved(G, V, λ), quadratic_form(G, V, λ)
    torch.testing.assert_close(times, V @ exact, rtol=1e-9, atol=1e-9 * largest)
    expected = (V @ exact @ V.T).diag()
    torch.testing.assert_close(forms, expected, rtol=1e-9, atol=1e-9 * largest)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("space", ["samples", "one sample"])
def test_influences_among_the_samples_themselves(space, share):
    """Where the difference in sample space cancels most: the vectors are in the span of the rows.

    What is lost is an epsilon of ‖g‖‖g‖/λ, which is large beside the result where λ is small.
    """
    G = random(3, *SHAPES[space])
    λ = share * largest_eigenvalue(G)
    exact = G @ dense.exact_matrix(G, λ) @ G.T
    bound = 100 * EPS * G.norm(dim=1).square().max() / λ
    assert bound < 1e-6 * exact.abs().max()  # the premise: the bound tells something
    assert ((solved(G, G, λ) @ G.T - exact).abs() <= bound).all()
    assert ((quadratic_form(G, G, λ) - exact.diag()).abs() <= bound).all()


@given(problems, dampings)
def test_equals_the_dense_solve(problem, λ):
    G, V = problem
    exact = dense.exact_matrix(G, λ)
    assert_close(solved(G, V, λ), V @ exact, λ)
    assert_close(quadratic_form(G, V, λ), (V @ exact @ V.T).diag(), λ, 1e-8)


@given(problems, dampings)
def test_a_wrong_n_is_told_apart(problem, λ):
    """Negative control: with n + 1 in place of n the comparison above fails."""
    G, V = problem
    exact = V @ dense.exact_matrix(G, λ)
    wrong = V @ dense.exact_matrix(G * (len(G) / (len(G) + 1)) ** 0.5, λ)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, exact, rtol=1e-9, atol=1e-9 * exact.norm())


@given(problems, dampings)
def test_both_spaces_agree(problem, λ):
    """With columns of zeros behind its own, the same block is solved in the other space."""
    G, V = problem
    n, d = G.shape
    wide = torch.nn.functional.pad(G, (0, max(0, n + 1 - d)))
    wide_v = torch.nn.functional.pad(V, (0, max(0, n + 1 - d)))
    tall = torch.cat([G] * (d // n + 1))  # duplicating the data changes nothing
    assert wide.shape[1] > n
    assert len(tall) >= d
    in_samples = solved(wide, wide_v, λ)[:, :d]
    in_parameters = solved(tall, V, λ)
    assert_close(in_samples, in_parameters, λ)
    forms = [quadratic_form(*pair, λ) for pair in ((wide, wide_v), (tall, V))]
    assert_close(*forms, λ, 1e-8)


def test_blocks_are_put_together_from_chunks():
    G = OrderedDict(a=random(1, 9, 4), b=random(2, 9, 12), more=random(3, 9, 2))
    V = OrderedDict(a=random(4, 5, 4), b=random(5, 5, 12))
    damping = {"a": 0.1, "b": 2.0, "more": 1.0}
    places = slice(4), slice(4, 8), slice(8, 9)
    chunks = [OrderedDict((b, g[place]) for b, g in G.items()) for place in places]
    times = solve(Exact().times, V, lambda: iter(chunks), 9, damping)
    forms = solve(Exact().forms, V, lambda: iter(chunks), 9, damping)
    assert list(times) == list(forms) == ["a", "b"]
    for block, v in V.items():
        exact = dense.exact_matrix(G[block], damping[block])
        torch.testing.assert_close(times[block], v @ exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(forms[block], (v @ exact @ v.T).diag(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", SHAPES)
def test_float32_is_solved_in_float64(space):
    """And stays so: products of the result with rows cancel again."""
    n, d = SHAPES[space]
    G, V = random(1, n, d, dtype=torch.float32), random(2, 6, d, dtype=torch.float32)
    before = G.clone(), V.clone()
    λ = 1e-6 * largest_eigenvalue(G.double())
    found = solved(G, V, λ)
    assert found.dtype == quadratic_form(G, V, λ).dtype == torch.float64
    exact = V.double() @ dense.exact_matrix(G.double(), λ)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0)
    assert torch.equal(G, before[0])
    assert torch.equal(V, before[1])


# Identities


@given(st.integers(0, 2**31), st.integers(1, 6), dampings)
def test_one_sample_is_datainf(seed, d, λ):
    G, V = random(seed, 1, d), random(seed + 1, 2, d)
    assert_close(solved(G, V, λ), datainf(G, V, λ), λ)


def test_more_samples_are_not_datainf():
    """Negative control of the above: two different samples tell both inverses apart."""
    G, V = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    with pytest.raises(AssertionError):
        assert_close(solved(G, V, 0.1), datainf(G, V, 0.1), 0.1)


@given(problems)
def test_both_tend_to_v_over_damping(problem):
    G, V = problem
    for inverse in (solved, datainf):
        torch.testing.assert_close(inverse(G, V, 1e12), V / 1e12, rtol=1e-9, atol=1e-21)


@given(problems, dampings)
def test_zero_gradients_give_v_over_damping(problem, λ):
    G, V = problem
    torch.testing.assert_close(solved(0 * G, V, λ), V / λ, rtol=1e-12, atol=0)


@given(problems, dampings)
def test_duplicating_the_data_changes_nothing(problem, λ):
    G, V = problem
    assert_close(solved(torch.cat([G, G]), V, λ), solved(G, V, λ), λ)


@given(problems, dampings, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(problem, λ, random):
    G, V = problem
    order = list(range(len(G)))
    random.shuffle(order)
    assert_close(solved(G[order], V, λ), solved(G, V, λ), λ)


@given(problems, dampings, st.sampled_from([1e-3, 0.5, 20.0]))
def test_scaling_gradients_by_c_and_damping_by_c2_divides_by_c2(problem, λ, c):
    G, V = problem
    scaled = solved(c * G, V, c**2 * λ)
    assert_close(scaled, solved(G, V, λ) / c**2, c**2 * λ)


@given(problems, dampings)
def test_symmetric_with_eigenvalues_between_0_and_1_over_damping(problem, λ):
    inverse = matrix(solved, problem[0], λ)
    assert_close(inverse, inverse.T, λ)
    values = torch.linalg.eigvalsh(inverse)
    assert values.min() > 0
    assert values.max() <= (1 + 1e-9) / λ


@given(problems, dampings, st.floats(-3, 3))
def test_linear(problem, λ, a):
    G, V = problem
    W = V.flip(0)
    combined = a * solved(G, V, λ) + solved(G, W, λ)
    assert_close(solved(G, a * V + W, λ), combined, λ, 1e-8)


@given(problems, dampings)
def test_between_datainf_and_nothing(problem, λ):
    """exact ≤ DataInf ≤ I/λ as quadratic forms.

    X ↦ X⁻¹ is operator convex on positive definite matrices (Jensen): for X_i = g_i g_iᵀ + λ I the
    inverse of the mean is at most the mean of the inverses. And X_i ≥ λ I, so X_i⁻¹ ≤ I/λ.
    """
    G, _ = problem
    exact, mean = matrix(solved, G, λ), matrix(datainf, G, λ)
    tolerance = 1e-9 / λ
    assert torch.linalg.eigvalsh(mean - exact).min() >= -tolerance
    nothing = torch.eye(G.shape[1], dtype=G.dtype) / λ
    assert torch.linalg.eigvalsh(nothing - mean).min() >= -tolerance


@pytest.mark.parametrize("d", [2, 6])
def test_strictly_between_for_samples_that_differ(d):
    """Negative control of the above: neither difference is nothing, and neither may be turned."""
    G, λ = random(1, 4, d), 0.1
    exact, mean = matrix(solved, G, λ), matrix(datainf, G, λ)
    assert torch.linalg.eigvalsh(mean - exact).max() > 0.1 / λ
    assert torch.linalg.eigvalsh(torch.eye(d) / λ - mean).max() > 0.1 / λ


# Damping that is lost


def test_damping_that_is_lost_is_refused_with_a_remedy():
    """Premise: two equal samples, whose K is singular, and λ is nothing beside it in float64."""
    G = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    assert 4 + 2e-20 == 4
    for call in (solved, quadratic_form):
        for rows in (G, torch.cat([G, G])):  # in sample space, and in parameter space
            with pytest.raises(DampingError, match='Use a larger λ; regularization="auto"'):
                call(rows, G, 1e-20)
            assert call(rows, G, 1e-3).isfinite().all()


@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(-20, 0))
def test_what_is_not_refused_has_not_lost_its_damping(seed, d, exponent):
    """For one sample g in its own direction the answer is known: g/(λ + ‖g‖²)."""
    g, λ = random(seed, 1, d), 10.0**exponent
    try:
        found = solved(g, g, λ)
    except DampingError:
        assert λ < 1e-10 * g.square().sum()
    else:
        torch.testing.assert_close(found, g / (λ + g.square().sum()), rtol=1e-2, atol=0)


def test_rows_that_are_not_finite_are_not_solved():
    G = torch.full((2, 3), 1e200, dtype=torch.float64)
    with pytest.raises(DampingError):
        solved(G, G, 1.0)
