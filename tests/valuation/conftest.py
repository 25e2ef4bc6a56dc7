"""Fixtures of the tests of values."""

import pytest

from valued import TEST, TRAIN, oracle


@pytest.fixture(scope="module")
def scores():
    return oracle(TRAIN, TEST)
