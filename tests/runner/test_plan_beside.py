"""What counts in a plan beside the rows that are read."""

import pytest

from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.runner.cutting import TRANSIT_SHARE, make_plan
from pydvl_datainf.runner.sizing import DECODED_SHARE, RunSize

N, WIDE, MEMORY = 2000, 20_000, 128 * 2**20


@pytest.mark.parametrize("narrow", [100, 4000])
def test_rows_of_a_narrow_piece_keep_their_memory_beside_a_piece_that_is_streamed(narrow):
    asked = RunSize(N, 10**5, 10**5, (narrow, WIDE), 4, 32, METHODS["DataInf"])
    plan = make_plan(asked, memory=MEMORY, rows="zarr", tile=(32, None))
    assert plan.pieces == ((1, narrow), (1, WIDE))
    assert 2 * N * narrow <= plan.held < 2 * N * WIDE  # the premise
    decoded = 8 * N * narrow * (8 * N * narrow <= plan.held // DECODED_SHARE)
    read = 2 * N * narrow + 2 * 2 * plan.train_tile * WIDE
    fixed = MEMORY // TRANSIT_SHARE + read + decoded + 3 * plan.chunk * WIDE * 8
    # Of a query its gradient, what the inverse adds up for it, what it gives, and its scores.
    each = 8 * (4 * WIDE + N + 2 * plan.train_tile + 2 * plan.chunk)
    assert plan.group_tiles == (MEMORY - fixed) // each // 32
