"""Which whole rows a run with compressed rows keeps, and what that changes: passes, and no bits."""

import numpy as np
import pytest

import dense
from compressed_runs import run
from method_runs import results, stopping
from piece_runs import M, N, rows_of
from pydvl_datainf import DataInfInfluence
from pydvl_datainf.inverse import compression
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.runner.sampled_rows import EMPTY, kept_in_parts, kept_positions
from small_runs import close


@pytest.fixture(autouse=True)
def few_checked(monkeypatch):
    """So that not all samples are kept."""
    monkeypatch.setattr(compression, "CHECKED", 2)


LENGTHS = [
    [5, 5, 5, 5, 3],
    [1] * 23,
    [23],
    [2, 9, 0, 12],
    [32] * 40 + [7],
]


@pytest.mark.parametrize("sample", [1, 9, 600])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_batches_of_which_half_is_wanted_are_kept_whole(lengths, sample):
    asked, stops = Compression(3, sample), np.cumsum(lengths)
    wanted, kept = asked.kept_whole(sum(lengths)), kept_positions(asked, lengths).tolist()
    expected = set(wanted.tolist())
    for length, stop in zip(lengths, stops, strict=True):
        own = set(range(stop - length, stop))
        expected |= own if 2 * len(own.intersection(wanted)) >= length else set()
    assert kept == sorted(expected)


@pytest.mark.parametrize("step", [1, 4, 5, 32])
@pytest.mark.parametrize("sample", [1, 9, 600])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_batch_lies_in_one_part_or_fills_them(lengths, sample, step):
    asked, stops = Compression(3, sample), np.cumsum(lengths)
    places = kept_in_parts(asked, lengths, step)
    filled = np.flatnonzero(places != EMPTY)
    kept = places[filled]
    assert kept.tolist() == kept_positions(asked, lengths).tolist()
    batches = np.searchsorted(stops, kept, side="right")
    for batch in np.unique(batches):
        at = filled[batches == batch]
        assert at.tolist() == list(range(at[0], at[-1] + 1))  # neighbours
        assert len(np.unique(at // step)) == -(-len(at) // step)
    assert places[-1] != EMPTY


def test_a_part_may_be_shared():
    """Premise: some parts hold several batches, and some have empty places."""
    places = kept_in_parts(Compression(3, 500), [32] * 60, 32)
    batches = [{p // 32 for p in places[at : at + 32] if p != EMPTY} for at in range(0, 500, 32)]
    assert EMPTY in places
    assert max(map(len, batches)) > 1


def test_rows_of_a_batch_that_is_kept_whole_come_from_one_pass(tmp_path, monkeypatch):
    passes, compute = [], DataInfInfluence.gradients_with_losses_by_block

    def counting(self, x, y):
        passes.append(len(x))
        return compute(self, x, y)

    monkeypatch.setattr(DataInfInfluence, "gradients_with_losses_by_block", counting)
    done = run(tmp_path / "run.zarr", basis_sample=10, tile=None)
    order = np.random.default_rng(0).permutation(N)
    kept = np.bincount(order[[*range(10), -1, -2]] // 5)
    assert kept.tolist() == [4, 1, 2, 3, 2]  # the premise, in batches of 5, and the last of 3
    assert passes == [5, 1, 2, 5, 3, 5 - 1, 5 - 2]
    assert done.attrs["gradients"] == N + M + M


def test_scores_are_those_of_samples_in_any_place(tmp_path):
    """The basis holds all of the sample, and whole rows of other samples are scored by it."""
    done = run(tmp_path / "run.zarr", basis_sample=10, rank=10)
    order = np.random.default_rng(0).permutation(N)
    for block, g in rows_of(N, 1).items():
        assert done.damping[block] == pytest.approx(float(dense.automatic_damping(g)), rel=1e-9)
        S = g[order[:10]].numpy()
        P = np.linalg.pinv(S) @ S
        share = np.sum((g.numpy() @ P) * g.numpy()) / np.sum(g.numpy() ** 2)
        assert done.energy[block] == pytest.approx(share, rel=1e-9)


def test_a_run_that_is_stopped_between_parts_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    settings = {"basis_sample": 10}
    whole = run(tmp_path / "whole.zarr", **settings)
    with monkeypatch.context() as patch:
        stopping(patch, "write_sample", 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run.zarr", **settings)
    done = run(tmp_path / "run.zarr", **settings)
    assert results(tmp_path / "run.zarr") == results(tmp_path / "whole.zarr")
    assert done.attrs["gradients"] == whole.attrs["gradients"]
    close(done.scores[:], whole.scores[:])
