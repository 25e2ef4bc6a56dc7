"""Runs whose blocks are worked on in several pieces, against the dense oracle and each other."""

import shutil
import signal
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
import stopped_run
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    StoreError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import run as making
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.tasks import rows as reading

N, M = 23, 7
SIZES = (3, 4, 16, 12, 6, 4)  # of the layers between which there are five blocks
WIDTHS = [(a + 1) * b for a, b in pairwise(SIZES)]
BLOCKS = {str(i): [f"{i}.weight", f"{i}.bias"] for i in range(0, 2 * len(WIDTHS), 2)}
PIECES = ((2, 16 + 80), (1, 204), (2, 78 + 28))
TILES = 4  # of queries, and of training samples
HALF = 2**-11  # the largest relative error of a number in half precision
LABELS = ["b", "a", "b", "c", "a", "b", "b"]


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(SIZES)]
    between = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(*between[:-1]).double()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


def loader(data, size):
    return DataLoader(TensorDataset(*data), size)


def datainf():
    return DataInfInfluence(network(), F.cross_entropy)


def exact():
    return ExactInfluence(network(), F.cross_entropy)


def plain():
    return HessianFreeInfluence(network(), F.cross_entropy)


def scaled():
    return HessianFreeInfluence(network(), F.cross_entropy, scaled=True)


MATRICES = {
    datainf: dense.datainf_matrix,
    exact: dense.exact_matrix,
    plain: lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype),
    scaled: dense.scaled_identity,
}
# Bytes in which the queries take several groups.
TIGHT = {datainf: 60_000, exact: 170_000, plain: 40_000, scaled: 40_000}
MEMORY = {"one group": lambda build: "1MiB", "groups": TIGHT.__getitem__}


def run(store, build=datainf, **settings):
    usual = {"rows": "zarr", "tile": (2, 6), "memory": "1MiB", "progress": False}
    data = {"test": loader(samples(M, 2), 3), "train": loader(samples(N, 1), 5)}
    return run_influences(build(), store=store, **data | usual | settings)


@cache
def rows_of(length, seed):
    model, data = network(), samples(length, seed)
    return {b: dense.gradients(model, F.cross_entropy, data, names) for b, names in BLOCKS.items()}


def stored_rows(store):
    """What is in the store, put together in float64."""
    group = zarr.open_group(store, mode="r")
    pieces = [group[f"rows/{p}"][...] for p in range(len(InfluenceRun(store).plan.pieces))]
    halves = torch.from_numpy(np.hstack(pieces)).double().split(WIDTHS, 1)
    scales = torch.from_numpy(group["row_scales"][...]).double().unbind(1)
    return {b: h * s[:, None] for b, h, s in zip(BLOCKS, halves, scales, strict=True)}


def truth(store, build=datainf):
    """Scores (M, blocks, N) and self-influences (N,) of the rows that are stored, by the oracle."""
    V, G, computed = rows_of(M, 2), stored_rows(store), rows_of(N, 1)
    inverse = {b: MATRICES[build](g, dense.automatic_damping(computed[b])) for b, g in G.items()}
    scores = torch.stack([V[b] @ inverse[b] @ G[b].T for b in BLOCKS], 1)
    return scores.numpy(), sum((G[b] @ inverse[b] * G[b]).sum(1) for b in BLOCKS).numpy()


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)


def results(store):
    """The content of all results, without intermediate ones."""
    files = (p for p in store.rglob("*") if p.is_file() and "/c/" in p.as_posix())
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def times(store):
    return {name: (store / name).stat().st_mtime_ns for name in results(store)}


def recorded(monkeypatch, where, name, seen):
    """Has every call of a function seen first."""
    function = getattr(where, name)

    def record(*arguments):
        seen(*arguments)
        return function(*arguments)

    monkeypatch.setattr(where, name, record)


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
    more = run_influences(datainf(), test, first, tmp_path / "more.zarr", progress=False)
    assert more.plan.pieces == PIECES
    G, V = stored_rows(tmp_path / "run.zarr"), rows_of(2, 9)
    inverse = {b: dense.datainf_matrix(g, first.damping[b]) for b, g in G.items()}
    close(more.scores[...], sum(V[b] @ inverse[b] @ g.T for b, g in G.items()).numpy())


@pytest.mark.slow
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
            recorded(patch, reading, "read_stored", lambda _, p, j, to=read: to.append(p))
            run(tmp_path / f"{held}.zarr", build, self_influence=True)
        counts[held] = [read.count(p) for p in range(len(PIECES))]
    assert results(tmp_path / f"{WIDEST}.zarr") == results(tmp_path / f"{WIDEST - 1}.zarr")
    # Held rows are read once for scores and self-influences together, and others tile by tile.
    assert counts[WIDEST] == [1, 1, 1]
    assert counts[WIDEST - 1][0] == counts[WIDEST - 1][2] == 1
    passes = 1 if build in (plain, scaled) else 2  # for scores; and for self-influences
    assert counts[WIDEST - 1][1] >= (passes + 1) * TILES


# Stopped, and damaged


def stopping(monkeypatch, name, call):
    """Ctrl-C in a certain call of a task."""
    seen = []

    def stop(*arguments):
        seen.append(arguments)
        if len(seen) == call:
            raise KeyboardInterrupt

    recorded(monkeypatch, tasks, name, stop)


def pieces_worked_on(monkeypatch):
    seen = []
    recorded(monkeypatch, tasks, "write_piece", lambda work, *_: seen.append(work))
    return seen


FULL = {"self_influence": True, "memory": TIGHT[datainf]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Stores of runs that nothing stopped, in several groups of queries."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, settings in KINDS.items():
        run(folder / name, **FULL | settings)
    return folder


KINDS = {"all": {}, "top": {"top_k": 3}, "by block": {"by_block": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [2, 3, 4, 5])
def test_a_run_that_was_stopped_goes_on_with_the_piece_that_is_missing(
    tmp_path, undisturbed, monkeypatch, kind, call
):
    store, settings = tmp_path / "run.zarr", FULL | KINDS[kind]
    with monkeypatch.context() as patch:
        stopping(patch, "write_piece", call)
        with pytest.raises(KeyboardInterrupt):
            run(store, **settings)
    before = InfluenceRun(store).attrs["gradients"]
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **settings)
    assert results(store) == results(undisturbed / kind)
    order = [(p, q) for q in range(len(done.plan.groups)) for p in range(len(PIECES))]
    assert [(work.piece, work.group) for work in worked] == order[call - 1 :]
    assert done.attrs["gradients"] == InfluenceRun(undisturbed / kind).attrs["gradients"]
    assert before <= done.attrs["gradients"]


@pytest.mark.parametrize("name", ["write_sums", "write_self_sum", "write_mean"])
@pytest.mark.parametrize("call", [1, 3])
def test_a_run_that_was_stopped_later_works_on_no_piece_again(
    tmp_path, undisturbed, monkeypatch, name, call
):
    store, call = tmp_path / "run.zarr", 1 if name == "write_self_sum" else call
    with monkeypatch.context() as patch:
        stopping(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(store, **FULL)
    worked = pieces_worked_on(monkeypatch)
    run(store, **FULL)
    assert results(store) == results(undisturbed / "all")
    assert not [work for work in worked if work.group in (0, None)]  # the first group was there


@pytest.fixture
def fork_server():
    stopped_run.start_fork_server()


def wide(store, **settings):
    return stopped_run.run(store, influence=stopped_run.build(hidden=64), rows="zarr", **settings)


@pytest.mark.parametrize(
    "key", ["work/scores/0/c/3/3", "work/scores/1/c/0/0", "work/scores/1/c/2/1", "rows/1/c/1/0"]
)
def test_a_run_that_is_killed_in_a_piece_goes_on(tmp_path, fork_server, key):
    wide(tmp_path / "whole.zarr")
    assert len(InfluenceRun(tmp_path / "whole.zarr").plan.pieces) == 2  # the premise
    store, function = tmp_path / "run.zarr", stopped_run.run_killed_in_write
    settings = {"influence": stopped_run.build(hidden=64), "rows": "zarr"}
    assert stopped_run.ended(function, store, key, 1, settings) == -signal.SIGKILL
    wide(store)
    assert results(store) == results(tmp_path / "whole.zarr")
    InfluenceRun(store).check()


def test_partial_scores_are_deleted_once_they_are_added(tmp_path, monkeypatch):
    found, store = {"write_vectors": [], "write_sums": []}, tmp_path / "run.zarr"
    for name, seen in found.items():
        look = partial(lambda seen, *_: seen.append(any(store.glob("work/scores/*/c"))), seen)
        recorded(monkeypatch, tasks, name, look)
    done = run(store, **FULL)
    assert len(done.plan.groups) > 1  # the premises
    assert len(found["write_vectors"]) == len(done.plan.test)
    assert all(found["write_sums"])
    assert not any(found["write_vectors"])


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rows_of_a_piece_are_computed_again(tmp_path, undisturbed, monkeypatch, kind):
    store = shutil.copytree(undisturbed / kind, tmp_path / "run.zarr")
    before = times(store)
    flip_a_byte(store / "rows/1/c/1/0")
    with pytest.raises(StoreError, match=r"chunks: rows/1/c/1/0\."):
        InfluenceRun(store).check()
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **FULL | KINDS[kind])
    assert worked == []
    assert results(store) == results(undisturbed / kind)
    assert done.attrs["gradients"] == InfluenceRun(undisturbed / kind).attrs["gradients"] + 6
    written = {name for name, time in times(store).items() if time != before[name]}
    tile = {f"rows/{p}/c/1/0" for p in range(3)} | {"row_scales/c/1/0"}
    assert written - {"squared_norms/c/1/0"} == tile


def test_the_scores_of_a_block_are_those_of_its_piece_alone(tmp_path, undisturbed, monkeypatch):
    store = shutil.copytree(undisturbed / "by block", tmp_path / "run.zarr")
    flip_a_byte(store / "scores/c/1/2/3")  # of the third block, which is the second piece
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **FULL | KINDS["by block"])
    (group,) = (q for q in range(len(done.plan.groups)) if 1 in done.plan.tiles_of(q))
    assert worked == [tasks.PieceWork(1, group, False)]  # self-influences are there
    assert results(store) == results(undisturbed / "by block")
    queries = done.plan.group(group)
    more = queries.stop - queries.start
    before = InfluenceRun(undisturbed / "by block").attrs["gradients"]
    assert done.attrs["gradients"] == before + more
