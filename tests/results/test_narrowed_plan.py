"""A plan for rows that turn out to be shorter."""

from dataclasses import replace

from pydvl_datainf.results.plan import Plan

PLAN = Plan(
    n=9,
    m=3,
    n_parameters=60,
    pieces=((2, 30), (1, 20), (1, 10)),
    test_tile=2,
    train_tile=4,
    group_tiles=1,
    span_tiles=1,
    step=4,
    chunk=4,
    held=1000,
    columns=25,
    part=256,
    self_tiles=1,
    rows="zarr",
)


def test_pieces_keep_their_blocks():
    found = PLAN.narrowed([3, 4, 20, 1])
    assert found.pieces == ((2, 7), (1, 20), (1, 1))
    assert (found.n_parameters, found.columns) == (28, 20)
    assert replace(found, pieces=PLAN.pieces, n_parameters=60, columns=25) == PLAN


def test_rows_that_are_as_long_change_nothing():
    assert PLAN.narrowed([18, 12, 20, 10]) == PLAN
