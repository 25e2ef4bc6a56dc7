"""Leading directions of float32 rows, which are found from products of rows or of columns."""

import numpy as np
import pytest
import torch

from pydvl_datainf.inverse import directions
from pydvl_datainf.inverse.directions import leading_directions

K = 12


def rows(b, d, smallest):
    """With singular values from 1 to `smallest`, by equal factors."""
    generator = torch.Generator().manual_seed(b)
    U, V = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        for n in (b, d)
    )
    k = min(b, d)
    values = torch.logspace(0, np.log10(smallest), k, dtype=torch.float64)
    return (U[:, :k] * values @ V[:k]).float()


def off_orthonormal(B):
    B = B.double()
    return float((B @ B.T - torch.eye(len(B)).double()).abs().max())


@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-6, 1e-12])
@pytest.mark.parametrize(("b", "d"), [(24, 60), (60, 24), (24, 24)])
def test_they_are_orthonormal_and_hold_the_most_energy(b, d, smallest):
    S = rows(b, d, smallest)
    B = leading_directions(S, K)
    assert B.dtype == torch.float32
    assert off_orthonormal(B) < 1e-6
    energy = np.linalg.svd(S.double().numpy(), compute_uv=False) ** 2
    held = float((S.double() @ B.double().T).square().sum())
    assert held == pytest.approx(energy[:K].sum(), rel=1e-6)


@pytest.mark.parametrize(("b", "d"), [(24, 60), (60, 24)])
def test_they_span_what_float64_directions_span(b, d):
    S = rows(b, d, 1e-3)
    leading = np.linalg.svd(S.double().numpy(), full_matrices=False)[2][:K]
    B = leading_directions(S, K).double().numpy()
    np.testing.assert_allclose(B.T @ B, leading.T @ leading, rtol=0, atol=1e-6)


def test_small_directions_are_found_otherwise(monkeypatch):
    """Negative control: those from products of rows would not be orthonormal, or numbers."""
    S = rows(24, 60, 1.0) * torch.logspace(0, -30, 60)
    assert off_orthonormal(leading_directions(S, 20)) < 1e-6
    monkeypatch.setattr(directions, "CLEAR", -np.inf)
    assert not off_orthonormal(leading_directions(S, 20)) < 1e-3
