"""Runs with compressed rows that are killed while they write, and go on to the same bits."""

import signal

import pytest

import stopped_run
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import run
from undisturbed import assert_same

pytestmark = [pytest.mark.usefixtures("fork_server"), pytest.mark.slow]

ASKED = {"rows": "compressed", "rank": 4, "basis_sample": 9, "self_influence": True}


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """The store of a run that nothing stopped."""
    store = tmp_path_factory.mktemp("compressed") / "run.zarr"
    run(store, **ASKED)
    return store


WRITTEN = [
    "work/bases/0/c/1/0",
    "bases/1/c/0/0",
    "outside_norms/c/2/0",
    "rows/0/c/3/0",
    "compression_error/c/0",
    "scores/c/1/2",
]


@pytest.mark.parametrize("key", WRITTEN)
def test_a_run_that_is_killed_while_it_writes_goes_on(tmp_path, compressed, key):
    store = tmp_path / "run.zarr"
    function = stopped_run.run_killed_in_write
    assert stopped_run.ended(function, store, key, 1, ASKED) == -signal.SIGKILL
    assert list(store.rglob("*.partial"))  # the premise: a file that has not got its name
    run(store, **ASKED)
    assert_same(store, compressed)
    InfluenceRun(store).check()
    assert not (store / "work").exists()
