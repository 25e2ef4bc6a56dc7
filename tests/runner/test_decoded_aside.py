"""Stored rows that a thread decodes while the first of them are computed with."""

from threading import current_thread, main_thread

import numpy as np
import pytest
import torch

from piece_runs import PIECES, TIGHT, WIDTHS, datainf, exact, run
from pydvl_datainf.runner.tasks import rows as reading


@pytest.fixture
def threads(monkeypatch):
    """Those that decode rows, call by call."""
    decode, found = reading.decode, []

    def watched(*arguments):
        found.append(current_thread())
        return decode(*arguments)

    monkeypatch.setattr(reading, "decode", watched)
    return found


def results(store, threads, count, monkeypatch, **settings):
    """Scores and self-influences with so many threads of torch, and whether others decoded."""
    threads.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: count)
        done = run(store, self_influence=True, **settings)
    return done.scores[...], done.self_influence(), {t is not main_thread() for t in threads}


@pytest.mark.parametrize("build", [datainf, exact])
def test_rows_that_are_decoded_aside_give_the_same_bits(tmp_path, threads, monkeypatch, build):
    aside = results(tmp_path / "1.zarr", threads, 1, monkeypatch, build=build)
    assert len({thread.name for thread in threads}) == 1
    assert len(threads) > len(WIDTHS) > len(PIECES)  # the premise: several parts of each block
    here = results(tmp_path / "2.zarr", threads, 2, monkeypatch, build=build)
    assert (aside[2], here[2]) == ({True}, {False})
    np.testing.assert_array_equal(aside[0], here[0])
    np.testing.assert_array_equal(aside[1], here[1])


def test_rows_that_are_decoded_twice_are_decoded_where_they_are_needed(
    tmp_path, threads, monkeypatch
):
    """Ahead of what they are needed for they would take memory."""
    found = results(tmp_path / "1.zarr", threads, 1, monkeypatch, memory=TIGHT[datainf])
    assert False in found[2]


def test_an_error_aside_ends_the_run_which_then_goes_on(tmp_path, monkeypatch):
    expected = run(tmp_path / "sound.zarr").scores[...]

    def fails(halves, scales, out):
        raise RuntimeError("no decoding today")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "decode", fails)
        with pytest.raises(RuntimeError, match="no decoding today"):
            run(tmp_path / "run.zarr")
    np.testing.assert_array_equal(run(tmp_path / "run.zarr").scores[...], expected)
