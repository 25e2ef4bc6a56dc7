"""Runs of few rows are cut into few pieces, whose files would cost more than what is in them."""

import pytest

from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.runner.cutting import LEAST_SHARE, make_plan
from pydvl_datainf.runner.sizing import RunSize

WIDTHS = (256,) * 24


def plan_of(n, memory=2**31, **settings):
    asked = RunSize(n, 20, 20, WIDTHS, 4, 32, METHODS["DataInf"])
    return make_plan(asked, memory=memory, rows="zarr", **settings)


@pytest.mark.parametrize(("n", "pieces"), [(32, 1), (300, 1), (1_000, 3), (2_000, 6), (20_000, 24)])
def test_pieces_are_few_where_rows_are(n, pieces):
    plan = plan_of(n)
    assert len(plan.pieces) == pieces
    assert [sum(counts) for counts in zip(*plan.pieces, strict=True)] == [24, sum(WIDTHS)]


def test_each_piece_but_the_last_fills_a_share_of_what_may_be_held():
    plan = plan_of(1_000)
    *others, _ = (2 * plan.n * width for _, width in plan.pieces)
    assert all(size >= plan.held // LEAST_SHARE for size in others)


def test_less_memory_cuts_as_before():
    """The premise of tests with little memory: their few rows are worth several pieces."""
    assert len(plan_of(32, 2**21).pieces) > 8
