"""The inverses without curvature, v/λ and v."""

from collections import OrderedDict

import pytest
import torch

from pydvl_datainf.inverse import identity
from pydvl_datainf.inverse.methods import (
    DATAINF,
    EXACT,
    HESSIAN_FREE,
    INVERSES,
    SCALED_HESSIAN_FREE,
)

V = OrderedDict(
    a=torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.0, 3.0]], dtype=torch.float64),
    b=torch.tensor([[3.0], [-1.0]], dtype=torch.float64),
)
DAMPING = {"a": 0.5, "b": 4.0}


def unread():
    """Training rows that must not be asked for."""
    raise AssertionError("rows were read")
    yield


def test_vectors_are_divided_by_the_damping_of_their_block():
    times = identity.inverse_times(V, unread(), 7, DAMPING)
    assert list(times) == ["a", "b"]
    assert times["a"].tolist() == [[2.0, -4.0, 8.0], [1.0, 0.0, 6.0]]
    assert times["b"].tolist() == [[0.75], [-0.25]]


def test_forms_are_squared_norms_divided_by_the_damping():
    forms = identity.inverse_forms(V, unread(), 7, DAMPING)
    assert forms["a"].tolist() == [42.0, 18.5]
    assert forms["b"].tolist() == [2.25, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_damping_one_nothing_changes(dtype):
    same = OrderedDict((block, v.to(dtype)) for block, v in V.items())
    times = identity.inverse_times(same, (), 0, {"a": 1.0, "b": 1.0})
    for block, v in same.items():
        assert torch.equal(times[block], v)
        assert times[block].dtype == dtype


@pytest.mark.parametrize("inverse", [DATAINF, EXACT])
def test_the_others_tend_to_it(inverse):
    """And not before λ is large: the negative control."""
    rows = OrderedDict((block, 2 * v) for block, v in V.items())
    large, small = dict.fromkeys(V, 1e12), dict.fromkeys(V, 1.0)
    for damping, is_close in ((large, True), (small, False)):
        found = inverse.times(V, [rows], 2, damping)
        scaled = identity.inverse_times(V, (), 2, damping)
        assert torch.allclose(found["a"], scaled["a"], rtol=1e-9, atol=1e-20) is is_close


def test_methods_by_name():
    assert list(INVERSES) == ["DataInf", "exact", "Hessian-free", "scaled Hessian-free"]
    assert [i.is_damped for i in INVERSES.values()] == [True, True, False, True]
    assert [i.rows for i in INVERSES.values()] == ["summed", "together", "unused", "unused"]
    assert INVERSES["Hessian-free"] is HESSIAN_FREE
    assert INVERSES["scaled Hessian-free"] is SCALED_HESSIAN_FREE
