"""Sums of runs against the dense oracle of each model, however they are cut, and what they lack."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zarr.storage import MemoryStore

from pydvl_datainf import (
    DataInfInfluence,
    InfluenceRun,
    StoreError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.valuation import to_valuation_result
from small_runs import close, samples
from sums_of_runs import BLOCKS, TEST, TRAIN, WEIGHTS, M, N, add, content, network, run, truth

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


def test_costs_are_those_of_all_runs(made, tmp_path):
    done = add(made, tmp_path / "sum.zarr")
    assert done.attrs["gradients"] == sum(r.attrs["gradients"] for r in made)
    seconds = done.attrs["seconds"]
    assert seconds["scores"] == sum(r.attrs["seconds"]["scores"] for r in made)
    assert seconds["sum"] > 0
