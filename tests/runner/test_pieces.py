"""Runs whose blocks are worked on in several pieces, against the dense oracle and each other."""

from dataclasses import replace

import numpy as np
import pytest

import dense
from method_runs import MATRICES, datainf, exact, loader, plain, recorded, results, scaled
from piece_runs import (
    BLOCKS,
    MEMORY,
    PIECES,
    TIGHT,
    TILES,
    WIDTHS,
    M,
    N,
    network,
    rows_of,
    run,
    stored_rows,
    truth,
)
from pydvl_datainf import compute_self_influence, run_influences
from pydvl_datainf.runner import request as making
from pydvl_datainf.runner.tasks import rows as reading
from small_runs import close, samples

HALF = 2**-11  # the largest relative error of a number in half precision
LABELS = ["b", "a", "b", "c", "a", "b", "b"]


# Agreement with the formula


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("build", MATRICES)
def test_scores_and_self_influences_are_those_of_the_formula(tmp_path, build, memory):
    store = tmp_path / "run.zarr"
    done = run(store, build, memory=MEMORY[memory](build), self_influence=True)
    assert done.plan.pieces == PIECES  # the premises
    assert (len(done.plan.groups) > 1) == (memory == "groups")
    scores, own = truth(store, build)
    close(done.scores[...], scores.sum(1))
    close(done.mean_influence(), scores.sum(1).mean(0))
    close(done.self_influence(), own)
    assert not (store / "work").exists()
    done.check()
    with pytest.raises(AssertionError):  # the negative control: without the last piece
        close(done.scores[...], scores[:, :3].sum(1), 1e-3)


def test_stored_rows_are_those_that_are_computed_up_to_half_precision(tmp_path):
    run(tmp_path / "run.zarr")
    for block, stored in stored_rows(tmp_path / "run.zarr").items():
        error = (stored - rows_of(N, 1)[block]).norm(dim=1)
        assert (error <= 1.01 * HALF * rows_of(N, 1)[block].norm(dim=1)).all()
        assert (error > 0).all()


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("build", [datainf, exact, scaled])
def test_scores_by_block(tmp_path, build, memory):
    done = run(tmp_path / "run.zarr", build, by_block=True, memory=MEMORY[memory](build))
    assert done.plan.pieces == PIECES
    assert done.scores.chunks == (2, 1, 6)
    scores = truth(tmp_path / "run.zarr", build)[0]
    close(done.scores[...], scores)
    close(done.mean_influence(), scores.sum(1).mean(0))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("build", [datainf, exact])
def test_the_top_is_that_of_all_scores(tmp_path, build, memory):
    done = run(tmp_path / "run.zarr", build, top_k=3, memory=MEMORY[memory](build))
    assert done.plan.pieces == PIECES
    expected = truth(tmp_path / "run.zarr", build)[0].sum(1)
    for most, sign in (("helpful", -1), ("harmful", 1)):
        order = np.argsort(sign * expected, axis=1)[:, :3]
        ids, scores = done.top(3, most=most)
        np.testing.assert_array_equal(ids, order)
        close(scores, np.take_along_axis(expected, order, axis=1))
    close(done.mean_influence(), expected.mean(0))


@pytest.mark.parametrize("build", [datainf, exact, scaled])
def test_groups_have_the_mean_influence_of_their_samples(tmp_path, build):
    done = run(tmp_path / "run.zarr", build, query_groups=LABELS)
    assert done.plan.pieces == tuple((1, width) for width in WIDTHS)  # of fewer queries: more
    scores = truth(tmp_path / "run.zarr", build)[0].sum(1)
    members = [[i for i, label in enumerate(LABELS) if label == group] for group in "bac"]
    close(done.scores[...], np.stack([scores[rows].mean(0) for rows in members]))


def test_self_influences_that_are_asked_for_later(tmp_path):
    done = run(tmp_path / "run.zarr")
    close(compute_self_influence(done, progress=False), truth(tmp_path / "run.zarr")[1])
    again = run(tmp_path / "again.zarr", self_influence=True)
    np.testing.assert_array_equal(done.self_influence(), again.self_influence())


def test_a_comparison_takes_the_rows_of_all_pieces(tmp_path):
    done = run(tmp_path / "run.zarr", exact_sample=N, tile=(7, 23))
    G, V, λ = stored_rows(tmp_path / "run.zarr"), rows_of(M, 2), done.damping
    found = done.approximation_error
    assert found.n == N  # the premise
    for b, block in enumerate(BLOCKS):
        A, E = (V[block] @ MATRICES[m](G[block], λ[block]) for m in (datainf, exact))
        assert found.errors[b] == pytest.approx(float((A - E).norm() / E.norm()), rel=1e-8)


def test_further_queries_take_the_pieces_of_the_rows(tmp_path):
    """Fewer queries alone would be cut into more pieces."""
    first = run(tmp_path / "run.zarr")
    test = loader(samples(2, 9), 2)
    more = run_influences(
        datainf(model=network()), test, first, tmp_path / "more.zarr", progress=False
    )
    assert more.plan.pieces == PIECES
    G, V = stored_rows(tmp_path / "run.zarr"), rows_of(2, 9)
    inverse = {b: dense.datainf_matrix(g, first.damping[b]) for b, g in G.items()}
    close(more.scores[...], sum(V[b] @ inverse[b] @ g.T for b, g in G.items()).numpy())


@pytest.mark.usefixtures("fork_server")
def test_processes_give_the_same_bits(tmp_path):
    settings = {"self_influence": True, "memory": TIGHT[datainf]}
    run(tmp_path / "here.zarr", **settings)
    run(tmp_path / "there.zarr", n_jobs=2, **settings)
    assert results(tmp_path / "there.zarr") == results(tmp_path / "here.zarr")


# How often rows are read


def with_held(monkeypatch, held):
    """Plans with another limit to the rows that are held."""
    plan = making.planned
    monkeypatch.setattr(making, "planned", lambda *a: replace(plan(*a), held=held))


WIDEST = 2 * N * max(WIDTHS)  # bytes of the rows of the second piece


@pytest.mark.parametrize("build", MATRICES)
def test_a_piece_that_is_not_held_gives_the_same_bits(tmp_path, monkeypatch, build):
    counts = {}
    for held in (WIDEST, WIDEST - 1):
        read = []
        with monkeypatch.context() as patch:
            with_held(patch, held)
            recorded(patch, reading, "read_stored", lambda _, p, *rest, to=read: to.append(p))
            run(tmp_path / f"{held}.zarr", build, self_influence=True)
        counts[held] = [read.count(p) for p in range(len(PIECES))]
    assert results(tmp_path / f"{WIDEST}.zarr") == results(tmp_path / f"{WIDEST - 1}.zarr")
    # Held rows are read once for scores and self-influences together, and others tile by tile.
    assert counts[WIDEST] == [1, 1, 1]
    assert counts[WIDEST - 1][0] == counts[WIDEST - 1][2] == 1
    passes = 1 if build in (plain, scaled) else 2  # for scores; and for self-influences
    assert counts[WIDEST - 1][1] >= (passes + 1) * TILES
