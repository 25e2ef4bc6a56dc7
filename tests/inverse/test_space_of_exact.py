"""In which space the exact inverse is solved: the one that costs less, by its own count."""

import pytest
import torch

from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import EXACT
from pydvl_datainf.inverse.woodbury import InParameters, InSamples

WAYS = {InParameters: lambda n, d: (n, d, d), InSamples: lambda n, d: (n, d, n)}


def operations(way, n, d):
    """Of Gᵀ G or G Gᵀ, and of its Cholesky factor; what queries add comes on top."""
    n, d, k = WAYS[way](n, d)
    return 2 * n * d * k + k**3 / 3


@pytest.mark.parametrize(("n", "d"), [(1, 8), (7, 8), (8, 8), (9, 8), (500, 8), (8, 1), (3, 500)])
def test_the_cheaper_space_is_taken(n, d):
    taken = type(EXACT.times(torch.zeros(1, d), 1.0, n))
    assert operations(taken, n, d) == min(operations(way, n, d) for way in WAYS)
    assert EXACT.flops(n, 0, d) == operations(taken, n, d)
    assert type(EXACT.forms(torch.zeros(1, d), 1.0, n)) is taken


@pytest.mark.parametrize("n", [3, 40, 5000])
def test_what_is_held_does_not_grow_with_samples_beyond_the_width(n):
    d, m = 40, 2
    most = EXACT.bytes(d, m, d)
    assert EXACT.bytes(n, m, d) <= most
    solver = EXACT.times(torch.randn(m, d), 1.0, n)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, 100):
        solver.add(torch.randn(min(100, n - start), d, generator=generator))
    held = solver.held if isinstance(solver, InSamples) else [solver.sums]
    assert 8 * sum(part.numel() for part in held) <= most


def test_both_spaces_solve_alike_at_their_border():
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    v = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    found = []
    for way in WAYS:
        rows = iter([{"": G[:9]}, {"": G[9:]}])
        found.append(solve(way, {"": v}, lambda rows=rows: rows, 20, {"": 0.01})[""])
    expected = torch.linalg.solve(G.T @ G / 20 + 0.01 * torch.eye(20).double(), v.T).T
    for one in found:
        torch.testing.assert_close(
            one, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )
