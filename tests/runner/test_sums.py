"""Sums of runs against the dense oracle of each model, however they are cut, stopped or damaged."""

import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zarr.storage import MemoryStore

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    InfluenceRun,
    PlanError,
    StoreError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
    sum_runs,
)
from pydvl_datainf.results.record import faults
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.valuation import to_valuation_result

N, M = 11, 13  # more queries than training samples
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
WEIGHTS = [0.5, 2.0, 0.25]
METHODS = {
    "datainf": (DataInfInfluence, dense.datainf_matrix),
    "exact": (ExactInfluence, dense.exact_matrix),
    "plain": (HessianFreeInfluence, lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype)),
}


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


TEST, TRAIN = samples(M, 2), samples(N, 1)
TRAIN[0][4], TRAIN[1][4] = TRAIN[0][3], TRAIN[1][3]  # a copy


@cache
def truth(seed, method="datainf", n=N):
    """Scores (M, blocks, n) and self-influences (n,) of one model."""
    model, train = network(seed), (TRAIN[0][:n], TRAIN[1][:n])
    V, G = (
        {b: dense.gradients(model, F.cross_entropy, data, names) for b, names in BLOCKS.items()}
        for data in (TEST, train)
    )
    inverse = {b: METHODS[method][1](g, dense.automatic_damping(g)) for b, g in G.items()}
    scores = torch.stack([V[b] @ inverse[b] @ G[b].T for b in BLOCKS], 1).numpy()
    return scores, sum((G[b] @ inverse[b] * G[b]).sum(1) for b in BLOCKS).numpy()


def run(store, seed=0, method="datainf", *, n=N, batch=4, dtype=torch.float64, **settings):
    settings = {"progress": False, "rows": "memory", "tile": (5, 4), **settings}
    model = network(seed).to(dtype)
    test, train = (
        DataLoader(TensorDataset(x[:k].to(dtype), y[:k]), batch)
        for (x, y), k in ((TEST, M), (TRAIN, n))
    )
    influence = METHODS[method][0](model, F.cross_entropy)
    return run_influences(influence, test, train, store, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs with self-influences, that are never changed."""
    folder = tmp_path_factory.mktemp("runs")
    return [run(folder / f"{seed}.zarr", seed, self_influence=True) for seed in range(3)]


def add(runs, store, weights=WEIGHTS, **settings):
    return sum_runs(runs, store, weights, progress=False, **settings)


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)


def content(store):
    """The bytes of all results."""
    files = (file for file in Path(store).rglob("*") if file.is_file() and file.name.isdigit())
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


# Agreement with the formula


@pytest.mark.parametrize("weights", [WEIGHTS, [0.0, 1.0, 3.0], None])
def test_sums_are_those_of_the_formula(made, tmp_path, weights):
    done = add(made, tmp_path / "sum.zarr", weights)
    w = weights or [1.0, 1.0, 1.0]
    scores = sum(a * truth(seed)[0].sum(1) for seed, a in enumerate(w))
    close(done.scores[...], scores)
    close(done.mean_influence(), scores.mean(0))
    close(done.self_influence(), sum(a * truth(seed)[1] for seed, a in enumerate(w)))
    close(done.relative_influence(), done.mean_influence() / np.sqrt(done.self_influence()))
    done.check()
    with pytest.raises(AssertionError):  # negative control: other weights are told apart
        close(done.scores[...], sum(truth(seed)[0].sum(1) for seed in range(2)))


@pytest.mark.parametrize("tile", [(2, 3), (50, 50), (3, 7)])
def test_runs_may_be_cut_otherwise(made, tmp_path, tile):
    """The tiles of the sum are those of the first run, and divide no tile of the others."""
    other = run(tmp_path / "other.zarr", 1, tile=tile)
    for runs in ([other, made[0]], [made[0], other]):
        done = add(runs, tmp_path / "sum.zarr", [2.0, 3.0], overwrite=True)
        seeds = [1, 0] if runs[0] is other else [0, 1]
        expected = sum(a * truth(s)[0].sum(1) for a, s in zip([2.0, 3.0], seeds, strict=True))
        close(done.scores[...], expected)
        assert done.plan.test_tile == runs[0].plan.test_tile


def test_one_chunk_is_held_at_a_time(made, tmp_path, monkeypatch):
    blocks = run(tmp_path / "blocks.zarr", 1, by_block=True)
    read, sizes = Stored.read, []

    def counted(self, name, where=...):
        values = read(self, name, where)
        sizes.append((name, values.size))
        return values

    monkeypatch.setattr(Stored, "read", counted)
    add([made[0], blocks], tmp_path / "sum.zarr", [1.0, 1.0])
    scores = [size for name, size in sizes if name == "scores"]
    assert max(scores) == 5 * 4  # a tile of the first run
    assert sum(scores) == (1 + 2) * M * N  # each number once


def test_a_store_in_memory(made):
    store = MemoryStore()
    done = add(made, store)
    close(done.scores[...], sum(w * truth(s)[0].sum(1) for s, w in enumerate(WEIGHTS)))
    nested = add([done], MemoryStore(), [2.0])
    np.testing.assert_array_equal(nested.scores[...], 2 * done.scores[...])


def test_one_run_alone(made, tmp_path):
    done = add(made[:1], tmp_path / "sum.zarr", [0.5])
    close(done.scores[...], 0.5 * truth(0)[0].sum(1))


def test_a_single_training_sample(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed, n=1) for seed in (0, 1)]
    done = add(runs, tmp_path / "sum.zarr", [1.0, 2.0])
    close(done.scores[...], truth(0, n=1)[0].sum(1) + 2 * truth(1, n=1)[0].sum(1))


def test_by_block_where_all_runs_are(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed, by_block=True) for seed in (0, 1)]
    done = add(runs, tmp_path / "sum.zarr", [1.0, 2.0])
    expected = truth(0)[0] + 2 * truth(1)[0]
    close(done.scores[...], expected)
    close(done.mean_influence(), expected.sum(1).mean(0))
    assert list(done.widths) == list(BLOCKS)
    done.check()


def test_blocks_are_added_where_only_some_runs_keep_them(made, tmp_path):
    by_block = run(tmp_path / "blocks.zarr", 1, by_block=True)
    for at, runs in enumerate(([made[0], by_block], [by_block, made[0]])):
        done = add(runs, tmp_path / f"sum{at}.zarr", [1.0, 1.0])
        close(done.scores[...], truth(0)[0].sum(1) + truth(1)[0].sum(1))


def test_methods_may_differ_and_are_named(made, tmp_path):
    others = [run(tmp_path / f"{name}.zarr", 1, name) for name in ("exact", "plain")]
    done = add([made[0], *others], tmp_path / "sum.zarr")
    expected = (0.5 * truth(0)[0] + 2 * truth(1, "exact")[0] + 0.25 * truth(1, "plain")[0]).sum(1)
    close(done.scores[...], expected)
    assert done.attrs["fingerprint"]["method"] == "sum of DataInf, exact, Hessian-free"
    assert [part.method for part in done.parts] == ["DataInf", "exact", "Hessian-free"]
    assert [part.weight for part in done.parts] == WEIGHTS
    places = [made[0].store.path, *(other.store.path for other in others)]
    assert [Path(part.place) for part in done.parts] == places
    assert [part.checksum for part in done.parts] == [
        InfluenceRun(place).attrs["checksum"] for place in places
    ]


def test_float32_is_rounded_once(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed, dtype=torch.float32) for seed in range(3)]
    done = add(runs, tmp_path / "sum.zarr")
    wide = sum(w * r.scores[...].astype(np.float64) for w, r in zip(WEIGHTS, runs, strict=True))
    assert done.scores.dtype == np.float32
    np.testing.assert_array_equal(done.scores[...], wide.astype(np.float32))
    in_float32 = sum(np.float32(w) * r.scores[...] for w, r in zip(WEIGHTS, runs, strict=True))
    assert (in_float32 != done.scores[...]).any()  # the premise: that order of rounding shows


def test_the_wider_of_two_data_types(made, tmp_path):
    narrow = run(tmp_path / "narrow.zarr", 1, dtype=torch.float32)
    done = add([narrow, made[0]], tmp_path / "sum.zarr", [1.0, 1.0], check_data=False)
    assert done.scores.dtype == np.float64
    np.testing.assert_array_equal(done.scores[...], narrow.scores[...] + made[0].scores[...])


def test_sums_can_be_added(made, tmp_path):
    inner = add(made[:2], tmp_path / "inner.zarr", [1.0, 2.0])
    done = add([inner, made[2]], tmp_path / "sum.zarr", [0.5, 1.0])
    close(done.scores[...], sum(w * truth(s)[0].sum(1) for s, w in enumerate([0.5, 1.0, 1.0])))


def test_groups_ids_and_columns_are_those_of_the_runs(tmp_path):
    settings = {
        "query_groups": ["a", "b"] * 6 + ["c"],
        "ids": {"train": [f"s{k}" for k in range(N)]},
        "metadata": {
            "train": {"label": TRAIN[1], "text": ["ä"] * N, "length": [np.nan] * N},
            "test": {"size": [1, 2, 3]},
        },
    }
    runs = [run(tmp_path / f"{seed}.zarr", seed, **settings) for seed in (0, 1)]
    done = add(runs, tmp_path / "sum.zarr", [1.0, 2.0], metadata={"what": "two seeds"})
    members = [range(0, 12, 2), range(1, 12, 2), [12]]
    whole = (truth(0)[0] + 2 * truth(1)[0]).sum(1)
    close(done.scores[...], np.stack([whole[rows].mean(0) for rows in members]))
    assert done.test_ids.tolist() == ["a", "b", "c"]
    assert done.train_ids.tolist() == settings["ids"]["train"]
    assert done.metadata("train")["label"].tolist() == TRAIN[1].tolist()
    assert done.metadata("test")["size"].tolist() == [1, 2, 3]
    assert done.metadata("run") == {"what": "two seeds"}
    assert done.top(1, "b")[0][0] == settings["ids"]["train"][done.scores[1].argmax()]


def test_further_queries_of_several_runs_can_be_added(tmp_path):
    runs = [
        run(tmp_path / f"{seed}.zarr", seed, rows="zarr", self_influence=True) for seed in (0, 1)
    ]
    queries = [
        run_influences(
            DataInfInfluence(network(seed), F.cross_entropy),
            DataLoader(TensorDataset(*samples(3, 7)), 2),
            of,
            tmp_path / f"query{seed}.zarr",
            progress=False,
        )
        for seed, of in enumerate(runs)
    ]
    done = add(queries, tmp_path / "sum.zarr", [1.0, 2.0])
    np.testing.assert_array_equal(
        done.scores[...], queries[0].scores[...] + 2 * queries[1].scores[...]
    )
    np.testing.assert_array_equal(
        done.self_influence(), runs[0].self_influence() + 2 * runs[1].self_influence()
    )


# What a sum has not


def test_lacks_are_told_with_what_to_do(made, tmp_path):
    without = run(tmp_path / "without.zarr", 1, rows="zarr")
    done = add([made[0], without], tmp_path / "sum.zarr", [1.0, 1.0])
    with pytest.raises(StoreError, match=r"is a sum of runs, each with its own λ: open one"):
        done.damping  # noqa: B018
    assert done.approximation_error is None
    assert not done.has_self_influence
    for ask in (done.self_influence, lambda: compute_self_influence(done, progress=False)):
        with pytest.raises(StoreError, match=r"no self-influences. It is a sum.*call sum_runs"):
            ask()
    with pytest.raises(StoreError, match=r"sum of runs, which keeps no training rows. Query each"):
        run_influences(
            DataInfInfluence(network(0), F.cross_entropy),
            TensorDataset(*TEST),
            done,
            tmp_path / "query.zarr",
            progress=False,
        )
    assert made[0].parts == ()


def test_self_influences_are_added_once_all_runs_have_them(made, tmp_path):
    late = run(tmp_path / "late.zarr", 1, rows="zarr")
    done = add([made[0], late], tmp_path / "sum.zarr", [1.0, 2.0])
    before = content(tmp_path / "sum.zarr")
    compute_self_influence(late, progress=False)
    again = add([made[0], InfluenceRun(late.store)], tmp_path / "sum.zarr", [1.0, 2.0])
    expected = made[0].self_influence() + 2 * InfluenceRun(late.store).self_influence()
    np.testing.assert_array_equal(again.self_influence(), expected)
    after = content(tmp_path / "sum.zarr")
    assert before == {name: value for name, value in after.items() if name in before}
    again.check()
    assert done.attrs["extras"] == []
    assert again.attrs["extras"] == ["self_influence"]


def test_values_of_pydvl_bear_the_name_of_the_sum(made, tmp_path):
    done = add(made, tmp_path / "sum.zarr")
    result = to_valuation_result(done)
    assert result.algorithm == "sum of DataInf"
    scores = sum(w * truth(seed)[0].sum(1) for seed, w in enumerate(WEIGHTS))
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))


# Refusals


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 3 runs"),
        ([1.0, -1.0, 1.0], "not negative"),
        ([1.0, np.nan, 1.0], "must be finite"),
        ([1.0, np.inf, 1.0], "must be finite"),
        ([0.0, 0.0, 0.0], "not all zero"),
    ],
)
def test_weights_that_do_not_fit(made, tmp_path, weights, message):
    with pytest.raises(PlanError, match=message):
        add(made, tmp_path / "sum.zarr", weights)
    assert list(tmp_path.iterdir()) == []


def test_no_runs(tmp_path):
    with pytest.raises(PlanError, match="no runs to add"):
        add([], tmp_path / "sum.zarr", None)


OTHERS = {
    r"training samples: 11 and 10": {"n": 10},
    r"training data: ": {"batch": 3},
    r"ids of the train samples": {"ids": {"train": range(1, N + 1)}},
    r"ids of the test samples": {"ids": {"test": [f"{i}" for i in range(M)]}},
    r"column 'train_label': only one": {"metadata": {"train": {"label": [0] * N}}},
    r"query groups: None and ": {"query_groups": [0, 1] * 6 + [2]},
    r"kept the top 2 .* without top_k": {"top_k": 2},
}


@pytest.mark.parametrize("message", OTHERS)
def test_runs_that_do_not_go_together(made, tmp_path, message):
    other = run(tmp_path / "other.zarr", 1, **OTHERS[message])
    with pytest.raises(PlanError, match=message):
        add([made[0], other], tmp_path / "sum.zarr", None)
    assert [path.name for path in tmp_path.iterdir()] == ["other.zarr"]


def test_columns_with_other_values(tmp_path):
    runs = [
        run(tmp_path / f"{value}.zarr", metadata={"test": {"a": [value] * M}}) for value in (0, 1)
    ]
    with pytest.raises(PlanError, match=r"differ\.\n  - column 'test_a'$"):
        add(runs, tmp_path / "sum.zarr", None)


def test_models_with_other_blocks_or_losses(made, tmp_path):
    train, test = TensorDataset(*TRAIN), TensorDataset(*TEST)
    wider = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    models = {
        "blocks of parameters": DataInfInfluence(wider, F.cross_entropy),
        "objective: ": DataInfInfluence(network(1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    }
    for at, (message, influence) in enumerate(models.items()):
        other = run_influences(influence, test, train, tmp_path / f"{at}.zarr", progress=False)
        with pytest.raises(PlanError, match=message):
            add([made[0], other], tmp_path / "sum.zarr", None, check_data=False)


def test_other_batches_of_the_same_samples_can_be_allowed(made, tmp_path):
    other = run(tmp_path / "other.zarr", 1, batch=3)
    done = add([made[0], other], tmp_path / "sum.zarr", [1.0, 1.0], check_data=False)
    close(done.scores[...], truth(0)[0].sum(1) + truth(1)[0].sum(1))


def test_a_sum_that_overflows(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed, dtype=torch.float32) for seed in (0, 1)]
    with pytest.raises(PlanError, match=r"'scores' overflows float32. Pass smaller weights"):
        add(runs, tmp_path / "sum.zarr", [1e38, 1e38])
    with pytest.raises(PlanError, match="overflows float32"):
        add(runs, tmp_path / "larger.zarr", [1e308, 1e308])


@pytest.mark.parametrize("name", ["scores", "mean_influence", "self_influence", "test", "width"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_damaged_runs_are_found_before_anything_is_written(made, tmp_path, name, is_lost):
    shutil.copytree(made[1].store.path, tmp_path / "copy.zarr")
    opened = InfluenceRun(tmp_path / "copy.zarr")
    chunk = next(file for file in (tmp_path / "copy.zarr" / name).rglob("c/**/*") if file.is_file())
    lose = {True: chunk.unlink, False: lambda: chunk.write_bytes(b"x" + chunk.read_bytes()[1:])}
    lose[is_lost]()
    with pytest.raises(StoreError, match=rf"copy.zarr has 1 missing or damaged chunks: {name}/"):
        add([made[0], opened], tmp_path / "sum.zarr", None)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]


def test_incomplete_runs(made, tmp_path):
    shutil.copytree(made[1].store.path, tmp_path / "copy.zarr")
    zarr.open_group(tmp_path / "copy.zarr", use_consolidated=False).attrs["complete"] = False
    with pytest.raises(StoreError, match=r"copy.zarr is not complete .* Call run_influences again"):
        add([made[0], InfluenceRun(tmp_path / "copy.zarr")], tmp_path / "sum.zarr", None)


# Its store


def test_another_run_is_never_replaced_unasked(made, tmp_path):
    place = tmp_path / "sum.zarr"
    add(made, place)
    before = content(place)
    with pytest.raises(StoreExistsError, match=r"sum.zarr holds another run(.|\n)*parts: "):
        add(made, place, [1.0, 1.0, 1.0])
    with pytest.raises(StoreExistsError, match=r"holds another run(.|\n)*it is a sum of runs"):
        run(place, self_influence=True)
    with pytest.raises(StoreExistsError, match=r"holds another run(.|\n)*method: "):
        add(made[1:], shutil.copytree(made[0].store.path, tmp_path / "run.zarr"), [1.0, 1.0])
    assert content(place) == before
    close(add(made, place, [1.0, 1.0, 1.0], overwrite=True).scores[...], sum_of_all())
    assert run(place, overwrite=True).parts == ()


def sum_of_all():
    return sum(truth(seed)[0].sum(1) for seed in range(3))


def test_a_run_that_is_to_be_added_is_not_replaced(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed) for seed in (0, 1)]
    before = content(tmp_path)
    for place in (tmp_path / "1.zarr", tmp_path):
        with pytest.raises(StoreExistsError, match=r"zarr, which is to be added"):
            add(runs, place, None, overwrite=True)
    assert content(tmp_path) == before


def test_the_store_is_locked(made, tmp_path):
    place = tmp_path / "sum.zarr"
    with Store(place).locked(), pytest.raises(StoreError, match="Another run is writing"):
        add(made, place)


def test_a_complete_sum_is_left_as_it_is_even_without_its_runs(made, tmp_path):
    copies = [shutil.copytree(r.store.path, tmp_path / r.store.path.name) for r in made]
    runs = [InfluenceRun(copy) for copy in copies]
    place = tmp_path / "sum.zarr"
    add(runs, place)
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    (copies[1] / "scores/c/0/0").unlink()
    add(runs, place)
    assert before == {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}


class Stop(BaseException):
    pass


def test_a_sum_stopped_at_any_write_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    runs = [
        run(tmp_path / f"{seed}.zarr", seed, by_block=True, self_influence=True, tile=(13, 6))
        for seed in (0, 1)
    ]
    write, written = Store.write, []

    def counted(self, name, *arguments):
        written.append(name)
        write(self, name, *arguments)

    monkeypatch.setattr(Store, "write", counted)
    whole = content(add(runs, tmp_path / "whole.zarr", [0.3, 0.7]).store.path)
    names = list(written)
    assert {"scores", "mean_influence", "self_influence", "test", "block"} <= set(names)

    def stopped(self, name, *arguments):
        written.append(name)
        arguments = {True: (), False: arguments}[len(written) > stop]  # as of one that is killed
        write(self, name, *arguments)

    for stop in range(len(names)):
        place = tmp_path / f"stopped{stop}.zarr"
        written.clear()
        monkeypatch.setattr(Store, "write", stopped)
        with pytest.raises(TypeError, match="missing 2 required"):
            add(runs, place, [0.3, 0.7])
        assert not InfluenceRun(place).is_complete
        monkeypatch.setattr(Store, "write", counted)
        written.clear()
        add(runs, place, [0.3, 0.7])
        assert len(written) == len(names) - stop  # nothing is done twice
        assert content(place) == whole
        InfluenceRun(place).check()


KILLED = """
import os, signal, sys
from pathlib import Path
from pydvl_datainf import InfluenceRun, sum_runs

folder, key = Path(sys.argv[1]), sys.argv[2]
replace = Path.replace

def replace_or_die(self, target):
    if Path(target).as_posix().endswith(key):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
sum_runs([InfluenceRun(p) for p in sys.argv[3:]], folder / "sum.zarr", [0.5, 2.0], progress=False)
"""


@pytest.mark.slow
def test_a_sum_that_is_killed_within_a_file_goes_on_to_the_same_bits(made, tmp_path):
    add(made[:2], tmp_path / "whole.zarr", [0.5, 2.0])
    places = [str(r.store) for r in made[:2]]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path, "scores/c/1/2", *places]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    place = tmp_path / "sum.zarr"
    assert not InfluenceRun(place).is_complete
    assert list(place.rglob("*.partial"))  # the premise: the file was being written
    add(made[:2], place, [0.5, 2.0])
    assert content(place) == content(tmp_path / "whole.zarr")
    assert not list(place.rglob("*.partial"))
    InfluenceRun(place).check()


def test_a_stopped_sum_goes_on_with_overwrite_too(made, tmp_path, monkeypatch):
    place, write = tmp_path / "sum.zarr", Store.write

    def stop_at_means(self, name, *arguments):
        if name == "mean_influence":
            raise Stop
        write(self, name, *arguments)

    monkeypatch.setattr(Store, "write", stop_at_means)
    with pytest.raises(Stop):
        add(made, place)
    monkeypatch.setattr(Store, "write", write)
    created = InfluenceRun(place).attrs["created"]
    with pytest.raises(StoreError, match=r"not complete \(9 of 9 chunks.*Call sum_runs again"):
        InfluenceRun(place).mean_influence()
    scores = {file: file.stat().st_mtime_ns for file in (place / "scores").rglob("0")}
    done = add(made, place, overwrite=True)
    assert done.attrs["created"] == created
    assert scores == {file: file.stat().st_mtime_ns for file in (place / "scores").rglob("0")}
    done.check()


@pytest.mark.parametrize("name", ["scores", "mean_influence", "self_influence", "test", "block"])
def test_damage_is_named_and_mended(made, tmp_path, name):
    place = tmp_path / "sum.zarr"
    add(made, place)
    whole = content(place)
    chunk = next(file for file in (place / name).rglob("c/**/*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"chunks: {name}/c/.*Call sum_runs again"):
        InfluenceRun(place).check()
    add(made, place)
    assert content(place) == whole


def test_attributes_that_cannot_be(made, tmp_path):
    attributes = add(made, tmp_path / "sum.zarr").attrs
    assert list(faults(attributes)) == []
    told, plan = attributes["fingerprint"], attributes["plan"]
    part = told["parts"][0]
    damaged = {
        "fingerprint: parts is": {"fingerprint": told | {"parts": [part | {"weight": -1}]}},
        "fingerprint: parts": {"fingerprint": told | {"parts": []}},
        "parts_in are not": {"parts_in": attributes["parts_in"][:2]},
        "parts_in is": {"parts_in": [1, 2, 3]},
        "plan: rows are": {"plan": plan | {"rows": "zarr"}},
        "are not as they were written": {
            "fingerprint": told | {"parts": [part | {"weight": 7}, *told["parts"][1:]]}
        },
    }
    for message, changes in damaged.items():
        assert message in next(faults(attributes | changes))
    run_of_one = made[0].attrs
    assert "plan: rows are" in next(
        faults(run_of_one | {"plan": run_of_one["plan"] | {"rows": "none"}})
    )


def test_costs_are_those_of_all_runs(made, tmp_path):
    done = add(made, tmp_path / "sum.zarr")
    assert done.attrs["gradients"] == sum(r.attrs["gradients"] for r in made)
    seconds = done.attrs["seconds"]
    assert seconds["scores"] == sum(r.attrs["seconds"]["scores"] for r in made)
    assert seconds["sum"] > 0
