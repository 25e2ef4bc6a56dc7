"""The top of one test sample, which is named by its id."""

import numpy as np
import pytest
from zarr.storage import MemoryStore

from small_runs import M, oracle, run

TEXTS = ["5", "seven", "0", "07", "3.0", "True", "-1"]


@pytest.fixture(scope="module")
def named():
    return run(MemoryStore(), ids={"test": TEXTS})


@pytest.fixture(scope="module")
def truth():
    return oracle()["scores"].sum(1)


@pytest.mark.parametrize(
    ("test", "position"),
    [("5", 0), (5, 0), ("seven", 1), ("0", 2), (0, 2), (np.int64(0), 2), ("07", 3), (-1, 6)],
)
def test_a_number_finds_the_id_that_is_its_text(named, truth, test, position):
    ids, scores = named.top(4, test=test)
    order = np.argsort(-truth[position])[:4]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(scores, truth[position, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("test", [1, 7, 3, True, "nine", 3.0])
def test_what_is_no_id_is_refused_also_where_it_is_a_position(named, test):
    told = rf"No test sample has the id {test!r}; there are '5', 'seven', '0', '07', '3.0', \.\.\."
    with pytest.raises(KeyError, match=rf"{told}. test is an id of test_ids, not a position"):
        named.top(1, test=test)


def test_numbers_are_not_found_by_text():
    numbered = run(MemoryStore(), ids={"test": range(10, 10 + M)})
    assert numbered.top(2, test=11)[0].shape == (2,)
    with pytest.raises(KeyError, match="No test sample has the id '11'; there are 10, 11"):
        numbered.top(2, test="11")
