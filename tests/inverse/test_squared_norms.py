"""Squared norms of rows, which are computed a few rows at a time."""

import pytest
import torch

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.results.half_precision import decode, encode
from pydvl_datainf.vectors import NEAR, rows_at_once

SHAPES = [(0, 3), (1, 1), (7, 3), (100, 4096), (3, NEAR + 1)]


def rows_of(shape, dtype=torch.float32):
    return 1e-3 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_squared_norms_are_those_in_float64(shape, dtype):
    rows = rows_of(shape, dtype)
    expected = rows.double().mul(rows.double()).sum(1)
    found = squared_norms(rows)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_premise_some_are_computed_in_several_parts():
    assert [
        len(torch.empty(shape).split(rows_at_once(torch.empty(shape)))) for shape in SHAPES
    ] == [*(1, 1, 1, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_how_many_rows_come_together_does_not_change_what_is_stored(shape):
    rows, halves = rows_of(shape), torch.empty(shape, dtype=torch.float16)
    scales = encode(rows, squared_norms(rows), halves)
    for i, row in enumerate(rows.split(1)):
        half = torch.empty_like(row, dtype=torch.float16)
        scale = encode(row, squared_norms(row), half)
        assert torch.equal(half, halves[i : i + 1])
        assert torch.equal(scale, scales[i : i + 1])
    stored = decode(halves, scales, torch.empty_like(rows))
    torch.testing.assert_close(stored, rows, rtol=1e-3, atol=1e-9)
