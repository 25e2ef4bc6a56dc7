"""Sums that are refused: weights and runs that do not go together, damaged and incomplete runs."""

import shutil

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pydvl_datainf import DataInfInfluence, InfluenceRun, PlanError, StoreError, run_influences
from small_runs import close
from sums_of_runs import TEST, TRAIN, M, N, add, network, run, truth


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
