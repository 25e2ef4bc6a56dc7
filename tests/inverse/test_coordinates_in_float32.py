"""Float32 rows as coordinates in a basis of all of them: what is lost, and where."""

import pytest
import torch

import dense
from pydvl_datainf.inverse.coordinates import projected
from pydvl_datainf.inverse.directions import leading_directions
from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import EXACT

N, D, M = 60, 2000, 3


@pytest.fixture(scope="module")
def problem():
    """Rows and vectors in float32, rows of very different singular values, λ, and influences."""
    generator = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(d, N, generator=generator, dtype=torch.float64))[0]
        for d in (N, D)
    )
    G = (U * 0.9 ** torch.arange(N) @ V.T).float()
    v = torch.randn(M, D, generator=generator) / 10 + torch.randn(M, N, generator=generator) @ G
    λ = float(dense.automatic_damping(G.double()))
    K = G.double() @ G.double().T  # (H + λ I)⁻¹ in the space of the samples
    inner = torch.linalg.solve(K + N * λ * torch.eye(N), K)
    return G, v, λ, v.double() @ G.double().T @ (torch.eye(N) - inner) / λ


def error(problem, within):
    """The largest error of an influence beside the largest influence, by the exact inverse."""
    G, v, λ, expected = problem
    bases = {"": leading_directions(G, N)}
    C, c = (projected({"": rows}, bases, within) for rows in (G, v))
    assert C[""].dtype == torch.float32
    found = solve(EXACT.times, c, lambda: [C], N, {"": λ})[""] @ C[""].double().T
    return float((found - expected).abs().max() / expected.abs().max())


def test_coordinates_that_are_added_up_in_float64_lose_nothing(problem):
    assert error(problem, torch.float64) < 1e-7


def test_sums_in_float32_lose_a_digit(problem):
    """Negative control: the basis is the same, and in float32 both times."""
    assert error(problem, None) > 3 * error(problem, torch.float64)
