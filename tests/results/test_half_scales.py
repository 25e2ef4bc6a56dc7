"""The scales of rows in half precision, against sums in float64 of their own."""

import numpy as np
import pytest
import torch

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.results.half_precision import encode

SHAPES = [(1, 1), (7, 33), (70, 4096), (2, 2**19 + 3)]  # some in several parts


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("shape", SHAPES)
def test_scales_are_the_ratios_of_norms(shape, size):
    rows = size * torch.randn(shape, generator=torch.Generator().manual_seed(0)).exp()
    halves = torch.empty(shape, dtype=torch.float16)
    scales = encode(rows, squared_norms(rows), halves)
    g, h = rows.numpy().astype(np.float64), halves.numpy().astype(np.float64)
    expected = np.sqrt((g**2).sum(1) / (h**2).sum(1))
    assert scales.dtype == torch.float32
    np.testing.assert_allclose(scales.numpy(), expected, rtol=3e-7)
    rms = np.sqrt((g**2).mean(1, keepdims=True))
    np.testing.assert_allclose(h, g / rms, rtol=2**-10, atol=2**-24)
