"""The Sherman-Morrison operator against dense solves, and its identities."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dense
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.sherman_morrison import DataInf, Forms, NarrowForms


def apply(G, V, λ, splits=(), n=None):
    """The operator for all rows V, with G in the chunks between `splits`."""
    bounds = [0, *splits, len(G)]
    return fed(DataInf().times(V, λ, n or len(G)), [G[a:b] for a, b in pairwise(bounds)])


def fed(solver, chunks):
    """The result of a solver that was fed chunks once."""
    for chunk in chunks:
        solver.add(chunk)
    solver.end_pass()
    return solver.result()


def random(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


problems = st.tuples(
    st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 6), st.integers(1, 5)
).map(lambda p: (random(p[0], p[1], p[2]), random(p[0] + 1, p[3], p[2])))
dampings = st.sampled_from([1e-3, 0.1, 1.0, 30.0])


@given(problems, dampings)
def test_equals_the_dense_mean_of_inverses(problem, λ):
    G, V = problem
    torch.testing.assert_close(
        apply(G, V, λ), V @ dense.datainf_matrix(G, λ), rtol=1e-9, atol=1e-9 / λ
    )


@given(problems, dampings)
def test_a_wrong_n_is_told_apart(problem, λ):
    """Negative control: with n + 1 in place of n the comparison above fails."""
    G, V = problem
    wrong = apply(G, V, λ, n=len(G) + 1)
    exact = V @ dense.datainf_matrix(G, λ)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, exact, rtol=1e-9, atol=1e-9 / λ * exact.norm())


@given(problems, dampings, st.lists(st.integers(0, 7), max_size=3))
def test_chunks_add_up(problem, λ, splits):
    G, V = problem
    splits = sorted(min(s, len(G)) for s in splits)
    torch.testing.assert_close(apply(G, V, λ, splits), apply(G, V, λ), rtol=1e-9, atol=1e-9 / λ)


@given(problems, dampings, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(problem, λ, random):
    G, V = problem
    order = list(range(len(G)))
    random.shuffle(order)
    torch.testing.assert_close(apply(G[order], V, λ), apply(G, V, λ), rtol=1e-9, atol=1e-9 / λ)


@given(problems, dampings)
def test_duplicating_the_data_changes_nothing(problem, λ):
    G, V = problem
    twice = torch.cat([G, G])
    torch.testing.assert_close(apply(twice, V, λ), apply(G, V, λ), rtol=1e-9, atol=1e-9 / λ)


@given(problems, dampings, st.sampled_from([1e-3, 0.5, 20.0]))
def test_scaling_gradients_by_c_and_damping_by_c2_divides_by_c2(problem, λ, c):
    G, V = problem
    torch.testing.assert_close(
        apply(c * G, V, c**2 * λ), apply(G, V, λ) / c**2, rtol=1e-9, atol=1e-9 / λ / c**2
    )


@given(problems, dampings)
def test_symmetric_with_eigenvalues_between_0_and_1_over_damping(problem, λ):
    G, _ = problem
    inverse = apply(G, torch.eye(G.shape[1], dtype=G.dtype), λ)
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-9, atol=1e-9 / λ)
    values = torch.linalg.eigvalsh(inverse)
    assert values.min() > 0
    assert values.max() <= (1 + 1e-9) / λ


@given(problems, dampings, st.floats(-3, 3))
def test_linear(problem, λ, a):
    G, V = problem
    W = V.flip(0)
    combined = apply(G, a * V + W, λ)
    torch.testing.assert_close(
        combined, a * apply(G, V, λ) + apply(G, W, λ), rtol=1e-9, atol=1e-8 / λ
    )


@given(st.integers(0, 2**31), st.integers(1, 6), dampings)
def test_one_sample_is_the_exact_inverse(seed, d, λ):
    G, V = random(seed, 1, d), random(seed + 1, 2, d)
    exact = torch.linalg.solve(G.T @ G + λ * torch.eye(d, dtype=G.dtype), V.T).T
    torch.testing.assert_close(apply(G, V, λ), exact, rtol=1e-9, atol=1e-9 / λ)


@given(problems)
def test_tends_to_v_over_damping(problem):
    G, V = problem
    torch.testing.assert_close(apply(G, V, 1e12), V / 1e12, rtol=1e-9, atol=1e-9 / 1e12)


@given(problems, dampings)
def test_zero_gradients_give_v_over_damping(problem, λ):
    G, V = problem
    torch.testing.assert_close(apply(0 * G, V, λ), V / λ, rtol=1e-12, atol=0)


@given(problems, dampings)
@pytest.mark.parametrize("solver", [Forms, NarrowForms])
def test_forms_are_the_diagonal_either_way(solver, problem, λ):
    G, V = problem
    exact = (V @ dense.datainf_matrix(G, λ) @ V.T).diag()
    form = fed(solver(V, λ, len(G)), G.split(2))
    torch.testing.assert_close(form, exact, rtol=1e-9, atol=1e-9 / λ)
    missing = fed(solver(V, λ, len(G)), [G[1:]])
    with pytest.raises(AssertionError):  # the negative control
        torch.testing.assert_close(missing, exact, rtol=1e-9, atol=1e-9 * exact.abs().min())


@pytest.mark.parametrize(
    ("n", "m", "d", "solver"),
    [(7, 5, 3, Forms), (7, 6, 3, NarrowForms), (40, 60, 4, NarrowForms), (40, 3, 4, Forms)],
)
def test_forms_take_the_way_of_less_work(n, m, d, solver):
    """Multiplications of the matrix d² (n + m), of products n m d: equal for 7, 5.25 and 3."""
    assert type(DataInf().forms(random(1, m, d), 0.1, n)) is solver


@given(problems, dampings)
def test_float32_stays_within_rounding_of_the_products_it_forms(problem, λ):
    G, V = problem
    narrow = apply(G.float(), V.float(), λ).double()
    error = (narrow - V.float().double() @ dense.datainf_matrix(G.float().double(), λ)).norm(dim=1)
    assert (error <= 1e-5 * V.norm(dim=1) / λ).all()


def test_gradients_whose_squares_underflow_in_float32():
    """Premise: the squares of these entries are zero in float32, and λ still divides."""
    G = 1e-23 * torch.ones(3, 4)
    assert G.square().sum() == 0
    norms = squared_norms(G)
    torch.testing.assert_close(
        norms, torch.full((3,), 4e-46, dtype=torch.float64), rtol=1e-6, atol=0
    )
