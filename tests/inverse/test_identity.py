"""The inverses without curvature, v/λ and v."""

from collections import OrderedDict

import pytest
import torch

from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import DATAINF, EXACT, HESSIAN_FREE, SCALED_HESSIAN_FREE

V = OrderedDict(
    a=torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.0, 3.0]], dtype=torch.float64),
    b=torch.tensor([[3.0], [-1.0]], dtype=torch.float64),
)
DAMPING = {"a": 0.5, "b": 4.0}


def unread():
    """Training rows that must not be asked for."""
    raise AssertionError("rows were read")


def test_vectors_are_divided_by_the_damping_of_their_block():
    times = solve(SCALED_HESSIAN_FREE.times, V, unread, 7, DAMPING)
    assert list(times) == ["a", "b"]
    assert times["a"].tolist() == [[2.0, -4.0, 8.0], [1.0, 0.0, 6.0]]
    assert times["b"].tolist() == [[0.75], [-0.25]]


def test_forms_are_squared_norms_divided_by_the_damping():
    forms = solve(SCALED_HESSIAN_FREE.forms, V, unread, 7, DAMPING)
    assert forms["a"].tolist() == [42.0, 18.5]
    assert forms["b"].tolist() == [2.25, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_damping_nothing_changes(dtype):
    same = OrderedDict((block, v.to(dtype)) for block, v in V.items())
    times = solve(HESSIAN_FREE.times, same, unread, 0, DAMPING)
    for block, v in same.items():
        assert torch.equal(times[block], v)
        assert times[block].dtype == dtype
        assert times[block].data_ptr() != v.data_ptr()  # a result may be changed in place
    forms = solve(HESSIAN_FREE.forms, same, unread, 0, DAMPING)
    assert forms["a"].tolist() == [21.0, 9.25]


@pytest.mark.parametrize("method", [DATAINF, EXACT])
def test_the_others_tend_to_it(method):
    """And not before λ is large: the negative control."""
    rows = OrderedDict((block, 2 * v) for block, v in V.items())
    large, small = dict.fromkeys(V, 1e12), dict.fromkeys(V, 1.0)
    for damping, is_close in ((large, True), (small, False)):
        found = solve(method.times, V, lambda: [rows], 2, damping)
        scaled = solve(SCALED_HESSIAN_FREE.times, V, unread, 2, damping)
        assert torch.allclose(found["a"], scaled["a"], rtol=1e-9, atol=1e-20) is is_close
