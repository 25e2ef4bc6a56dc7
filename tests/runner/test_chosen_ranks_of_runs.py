"""Runs whose compressed rows keep as many numbers of each block as their energy asks for."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
import zarr

import dense
import method_runs
from compressed_runs import SAMPLE, assert_goes_on, assert_refused, loader, run, told
from method_runs import MATRICES, datainf, exact, results, stopped
from piece_runs import BLOCKS, WIDTHS, M, N, network, rows_of
from pydvl_datainf import PlanError, StoreExistsError, run_influences
from pydvl_datainf.results.facts import run_facts
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import run as runs
from small_runs import close, samples

ASKED = {"rank": "auto", "m": 2, "self_influence": True}


def directions(g, sample=SAMPLE):
    """Projection on the fewest leading directions of a sample's rows with 95% of their energy."""
    chosen = np.random.default_rng(0).permutation(N)[:sample]
    _, σ, V = np.linalg.svd(g[chosen].numpy(), full_matrices=False)
    r = 1 + int((np.cumsum(σ**2) < 0.95 * (σ**2).sum()).sum())
    return r, torch.from_numpy(V[:r].T @ V[:r])


def oracle():
    return {block: directions(g) for block, g in rows_of(N, 1).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, in several pieces."""
    store = tmp_path_factory.mktemp("chosen") / "run.zarr"
    run(store, **ASKED)
    return store


def test_each_block_keeps_what_its_energy_asks_for(whole):
    done = InfluenceRun(whole)
    ranks = {block: r for block, (r, _) in oracle().items()}
    assert done.ranks == ranks
    assert len(set(ranks.values())) > 2  # premise: blocks differ
    assert done.attrs["fingerprint"]["compression"]["ranks"] == list(ranks.values())
    assert done.plan.n_parameters == sum(ranks.values())
    assert [count for count, _ in done.plan.pieces] == [1] * 5
    group = zarr.open_group(whole, mode="r")
    for b, (block, g) in enumerate(rows_of(N, 1).items()):
        B, P = torch.from_numpy(group[f"bases/{b}"][...]), oracle()[block][1]
        torch.testing.assert_close(B.T @ B, P, rtol=1e-9, atol=1e-9)
        share = float((g @ P).square().sum() / g.square().sum())
        assert done.energy[block] == pytest.approx(share, rel=1e-9)
    assert done.attrs["gradients"] == N + 2 + 2  # none of a training sample is computed twice
    done.check()


@pytest.mark.parametrize("build", [datainf, exact])
def test_scores_are_those_of_the_formulas(tmp_path, build):
    store = tmp_path / "run.zarr"
    done = run(store, build, M, rank="auto")
    assert len(done.plan.pieces) == 1
    C, total = method_runs.stored_rows(store, done.ranks), 0
    group = zarr.open_group(store, mode="r")
    for b, (block, g) in enumerate(rows_of(N, 1).items()):
        λ, c = dense.automatic_damping(g), C[block]
        B = torch.from_numpy(group[f"bases/{b}"][...])
        inverse = MATRICES[build](c, λ)
        if build is datainf:  # weights of whole rows
            w = 1 / (λ + g.square().sum(1))
            inverse = (torch.eye(len(B)) - torch.einsum("i,ia,ib->ab", w, c, c) / N) / λ
        total = total + rows_of(M, 2)[block] @ B.T @ inverse @ c.T
    close(done.scores[:], total.numpy())


def test_a_block_whose_energy_needs_all_its_numbers_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("pydvl_datainf.inverse.coordinates.SHARE", 1 - 1e-13)
    done = run(tmp_path / "run.zarr", rank="auto", basis_sample=N)
    assert done.ranks["0"] == WIDTHS[0]
    assert "bases/0" not in done.store.layouts
    assert done.ranks["2"] < WIDTHS[1]
    done.check()


def test_one_sample(tmp_path):
    one = method_runs.loader(samples(1, 1), 5)
    done = run(tmp_path / "run.zarr", exact, train=one, tile=None, rank="auto")
    assert done.ranks == dict.fromkeys(BLOCKS, 1)
    done.check()


# It goes on


STOPS = [("write_rank", 3), ("write_basis", 2), ("write_rows", 1)]


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, stop):
    run_asked = partial(run, **ASKED)
    done = assert_goes_on(monkeypatch, stop, run_asked, tmp_path / "run.zarr", whole)
    assert done.attrs["fingerprint"] == InfluenceRun(whole).attrs["fingerprint"]


@pytest.mark.parametrize("name", ["enter_again", "lay_out"])
def test_so_does_one_that_was_stopped_when_ranks_were_chosen(tmp_path, whole, monkeypatch, name):
    store, seen = tmp_path / "run.zarr", []
    with monkeypatch.context() as patch:

        def stop(*arguments):
            seen.append(name)
            if len(seen) == {"enter_again": 1, "lay_out": 2}[name]:
                raise KeyboardInterrupt

        method_runs.recorded(patch, runs, name, stop)
        with pytest.raises(KeyboardInterrupt):
            run(store, **ASKED)
    stopped = InfluenceRun(store)
    assert (stopped.ranks is None) == (name == "enter_again")
    assert "not chosen yet" in run_facts(stopped)["The run"]["Training rows kept"] or seen[1:]
    run(store, **ASKED)
    assert results(store) == results(whole)


def test_what_is_damaged_is_made_again(tmp_path, whole):
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    (store / "bases/2/c/0/0").unlink()
    run(store, **ASKED)
    assert results(store) == results(whole)


def test_ranks_of_a_run_that_is_replaced_are_forgotten(tmp_path, monkeypatch):
    store, others = tmp_path / "run.zarr", method_runs.loader(samples(N, 7), 5)
    with stopped(monkeypatch, "write_rows", 1):
        run(store, **ASKED)
    with pytest.raises(StoreExistsError, match="training data"):
        run(store, train=others, **ASKED)
    done = run(store, train=others, overwrite=True, **ASKED)
    fresh = run(tmp_path / "fresh.zarr", train=others, **ASKED)
    assert fresh.ranks != {block: r for block, (r, _) in oracle().items()}  # premise
    assert done.ranks == fresh.ranks
    assert results(store) == results(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("other", [{"rank": 20}, {"basis_sample": 20}, {"basis_seed": 1}])
def test_another_compression_is_another_run(whole, other):
    with pytest.raises(StoreExistsError, match="compression"):
        run(whole, **ASKED | other)


@pytest.mark.slow
def test_worker_processes_leave_the_same_bits(tmp_path, whole):
    run(tmp_path / "run.zarr", n_jobs=2, **ASKED)
    assert results(tmp_path / "run.zarr") == results(whole)


# Queries


def test_a_query_has_the_ranks_of_its_run(tmp_path, whole):
    ask, settings = datainf(model=network()), {"tile": (2, None), "memory": "1MiB"}
    query = run_influences(ask, loader(2), InfluenceRun(whole), tmp_path / "q.zarr", **settings)
    assert np.array_equal(query.scores[:], InfluenceRun(whole).scores[:])
    assert query.ranks == InfluenceRun(whole).ranks
    query.check()
    asked = {"rows": "compressed", "basis_sample": SAMPLE, **settings}
    again = run_influences(ask, loader(2), query, tmp_path / "a.zarr", rank="auto", **asked)
    assert np.array_equal(again.scores[:], query.scores[:])
    with pytest.raises(PlanError, match="keeps its training rows with rank='auto', otherwise"):
        run_influences(ask, loader(2), query, tmp_path / "b.zarr", rank=20, **asked)


# What is told, and what cannot be


def test_facts_tell_the_ranks(whole):
    low, *_, high = ranks = sorted(InfluenceRun(whole).ranks.values())
    kept = run_facts(InfluenceRun(whole))["The run"]["Training rows kept"]
    assert kept == (
        f"yes, of each block {low} to {high} coordinates (median {ranks[2]}), chosen to hold 95% "
        "of a sample's energy"
    )


def test_other_runs_tell_theirs(tmp_path):
    assert run(tmp_path / "given.zarr", rank=20).ranks == dict(
        zip(BLOCKS, (min(d, 20) for d in WIDTHS), strict=True)
    )
    whole = run(tmp_path / "whole.zarr", rows="zarr", rank=None, basis_sample=None)
    assert whole.ranks is None


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("ranks"),  # of a complete run
        lambda said: said.update(ranks=said["ranks"][:4]),
        lambda said: said.update(ranks=[*said["ranks"][:4], 0]),
        lambda said: said.update(ranks=[*said["ranks"][:3], 80, 1]),
        lambda said: said.update(ranks="many"),
        lambda said: said.update(rank=20),
    ],
)
def test_attributes_that_cannot_be_are_named(tmp_path, whole, change):
    said = dict(told(whole))
    change(said)
    assert_refused(whole, tmp_path / "run.zarr", said)
