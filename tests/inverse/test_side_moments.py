"""Moments of which side bases are made, from tokens, however many these are."""

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from pydvl_datainf.inverse.sides import SideMoments


class Largest(TorchFunctionMode):
    """Notes the largest result."""

    size = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and "_" not in str(resolve_name(function)):
            self.size = max(self.size, found.numel())
        return found


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("t", [1, 3, 40, 400])
def test_moments_of_tokens_are_those_of_their_rows(m, t):
    torch.manual_seed(t)
    e, x = torch.randn(m, t, 5).double(), torch.randn(m, t, 7).double()
    moments = SideMoments.zeros((5, 7), False, torch.device("cpu"))
    with Largest() as seen:
        moments.add_tokens(e, x)
        moments.add_tokens(e[:1], x[:1])
    rows = [sum(torch.outer(e[s, k], x[s, k]) for k in range(t)) for s in [*range(m), 0]]
    expected = sum(G @ G.T for G in rows), sum(G.T @ G for G in rows)
    torch.testing.assert_close(moments.outputs, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moments.inputs, expected[1], rtol=1e-10, atol=1e-10)
    assert 0 < seen.size <= max(7 * 7, m * 5 * 7, m * 7 * t)  # and not t x t of each sample
