"""Compressed rows, and rows of another curvature, on Dask: the bits of this process."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from distributed import Client

import stopped_run
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIMEOUT, Pause, build, chunks, run, unwatched
from undisturbed import assert_same

pytestmark = [pytest.mark.usefixtures("fork_server"), pytest.mark.slow]

COMPRESSED = {"rows": "compressed", "basis_sample": 9, "self_influence": True}
KINDS = {
    "compressed": ({}, {**COMPRESSED, "rank": 4}),
    "chosen ranks": ({}, {**COMPRESSED, "rank": "auto"}),
    "gauss-newton": ({"curvature": "gauss-newton"}, {"rows": "zarr", "self_influence": True}),
}


@pytest.fixture(scope="module")
def client(lossy_cluster):
    with Client(lossy_cluster) as client:
        yield client


def run_of(kind, store, watch=unwatched, **settings):
    of_model, of_run = KINDS[kind]
    return run(store, influence=build(watch, **of_model), **of_run, **settings)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The stores of runs in this process."""
    folder = tmp_path_factory.mktemp("here")
    for kind in KINDS:
        run_of(kind, folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_workers_leave_the_same_bits(tmp_path, client, here, kind):
    client.wait_for_workers(2, timeout=TIMEOUT)
    run_of(kind, tmp_path / "run.zarr", client=client)
    assert_same(tmp_path / "run.zarr", here / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_so_they_do_after_one_was_killed(tmp_path, client, here, kind):
    store = tmp_path / "run.zarr"
    client.wait_for_workers(2, timeout=TIMEOUT)
    pids = client.run(os.getpid)
    enough = len(chunks(here / kind)) // 2

    def kill():
        stopped_run.wait_for(lambda: len(chunks(store)) >= enough)
        os.kill(min(pids.values()), signal.SIGKILL)
        return InfluenceRun(store).is_complete

    with ThreadPoolExecutor(1) as pool:
        was_complete = pool.submit(kill)
        run_of(kind, store, Pause(0.02), client=client)
    assert not was_complete.result()  # premise
    client.wait_for_workers(2, timeout=TIMEOUT)
    assert min(pids.values()) not in client.run(os.getpid).values()
    assert_same(store, here / kind)
