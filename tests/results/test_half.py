"""Rows in half precision."""

import pytest
import torch

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.results.half_precision import decode, encode


def encoded(rows):
    halves = torch.empty_like(rows, dtype=torch.float16)
    return halves, encode(rows, squared_norms(rows), halves)


def decoded(halves, scales):
    return decode(halves, scales, halves.new_empty(halves.shape, dtype=scales.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e6])
def test_stored_rows_have_the_norms_of_the_rows(dtype, size):
    rows = size * torch.randn(5, 300, dtype=dtype, generator=torch.Generator().manual_seed(0))
    stored = decoded(*encoded(rows))
    assert stored.dtype == dtype
    norms = rows.double().norm(dim=1)
    torch.testing.assert_close(stored.double().norm(dim=1), norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(stored, rows, rtol=1e-3, atol=size * 1e-6)
    assert not torch.equal(stored, rows)


def test_no_entry_is_flushed_to_zero():
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(4, 4000, generator=generator) * 6 - 8  # 1e-8 to 1e-2
    halves, _ = encoded(10**exponents)
    assert (halves != 0).all()
    assert (encoded(10**exponents)[0].abs() < 65504).all()


def test_zero_rows_stay_zero():
    rows = torch.zeros(3, 4)
    rows[1] = 1e-3
    halves, scales = encoded(rows)
    assert scales.tolist()[0] == scales.tolist()[2] == 0
    torch.testing.assert_close(decoded(halves, scales), rows, rtol=1e-6, atol=0)


def test_a_single_large_entry_among_zeros_is_kept():
    rows = torch.zeros(1, 10_000)
    rows[0, 7] = 3.0
    torch.testing.assert_close(decoded(*encoded(rows)), rows, rtol=1e-6, atol=0)
