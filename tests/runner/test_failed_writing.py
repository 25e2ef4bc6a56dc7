"""What fails beside the computation or in the middle of a call leaves nothing that looks whole."""

import shutil
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    ExactInfluence,
    InfluenceRun,
    StoreError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.report import write_report
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.cutting import make_plan
from pydvl_datainf.runner.sizing import RunSize
from pydvl_datainf.runner.tasks import gradients

N, M = 12, 3


def batches(length, size, seed, inputs=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, inputs, generator=generator)
    y = torch.randint(0, 4, (length,), generator=generator)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, length, size)]


def influence(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    return DataInfInfluence(model, F.cross_entropy, **settings)


def run(store, **settings):
    usual = {"rows": "zarr", "tile": (2, 4), "progress": False}
    return run_influences(
        influence(batch_size=1), batches(M, 2, 2), batches(N, 4, 1), store, **usual | settings
    )


def contents(store):
    files = (path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")
    return {path.relative_to(store): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    store = tmp_path_factory.mktemp("sound") / "run.zarr"
    run(store)
    return store


@pytest.mark.parametrize(
    ("name", "call"),
    [*product(["encode"], [1, 4, 5, 12, 16]), *product(["whole_squares"], [1, 2, 4, 5, 12])],
)
def test_no_tile_is_kept_of_which_a_step_failed(tmp_path, monkeypatch, sound, name, call):
    original, left = getattr(gradients, name), [call]

    def fails_once(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("out of memory")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gradients, name, fails_once)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path / "run.zarr")
    run(tmp_path / "run.zarr")
    assert contents(tmp_path / "run.zarr") == contents(sound)


def stopping(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["write_piece", "write_self_sum"])
def test_self_influences_that_were_stopped_are_computed_by_the_next_call(
    tmp_path, monkeypatch, sound, name
):
    store = shutil.copytree(sound, tmp_path / "run.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(tasks, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            compute_self_influence(InfluenceRun(store), progress=False)
    write_report(InfluenceRun(store), tmp_path / "report.html")
    assert not InfluenceRun(store).has_self_influence
    found = compute_self_influence(InfluenceRun(store), progress=False)
    expected = run(tmp_path / "other.zarr", self_influence=True).self_influence()
    np.testing.assert_array_equal(found, expected)
    InfluenceRun(store).check()
    assert not (store / "work").exists()


def test_a_damaged_self_influence_is_named_and_made_again(tmp_path):
    store = tmp_path / "run.zarr"
    expected = run(store, self_influence=True).self_influence()
    (store / "self_influence/c/1").unlink()
    with pytest.raises(StoreError, match="self_influence/c/1"):
        InfluenceRun(store).self_influence()
    np.testing.assert_array_equal(
        compute_self_influence(InfluenceRun(store), progress=False), expected
    )
    (store / "self_influence/c/0").unlink()
    np.testing.assert_array_equal(run(store).self_influence(), expected)  # not asked for again


def test_self_influences_do_not_need_the_scores(tmp_path, sound):
    store = shutil.copytree(sound, tmp_path / "run.zarr")
    (store / "scores/c/0/1").unlink()
    compute_self_influence(InfluenceRun(store), progress=False)
    with pytest.raises(StoreError, match="scores/c/0/1"):
        InfluenceRun(store).check()


def test_what_stops_a_run_is_told_and_not_that_it_cannot_be_noted(tmp_path, monkeypatch):
    def full(*arguments):
        raise StoreError("full")

    monkeypatch.setattr(tasks, "write_piece", stopping)
    monkeypatch.setattr("pydvl_datainf.runner.task_calls.TaskCalls._tell_cost", full)
    monkeypatch.setattr(tasks, "write_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.zarr")


def test_rows_of_the_smallest_numbers_are_stored(tmp_path):
    """The gradient of a sample that a model is sure of may be the smallest number above zero."""
    model = nn.Linear(300, 2, bias=False)
    model.weight.data.zero_()
    model.weight.data[0, 0] = 102.0
    x, y = 0.1 * torch.randn(10, 300), torch.arange(10) % 2
    x[:, 0] = 0
    x[3], y[3] = torch.eye(300)[0], 0
    scores = [
        run_influences(
            DataInfInfluence(model, F.cross_entropy),
            (x[:2], y[:2]),
            [(x, y)],
            tmp_path / rows,
            rows=rows,
            progress=False,
        ).scores[...]
        for rows in ("memory", "zarr")
    ]
    np.testing.assert_allclose(*scores, atol=1e-3 * np.abs(scores[0]).max())


def test_more_memory_is_never_too_little():
    size = RunSize(
        n=1000, m=5, m_samples=5, widths=(100,) * 5, itemsize=4, longest=32, method=METHODS["exact"]
    )
    for memory in range(220_000, 900_000, 20_000):
        make_plan(size, memory=memory, rows="zarr", batch_size=32)


def test_a_tile_larger_than_the_queries_takes_no_more(tmp_path):
    size = RunSize(
        n=50, m=3, m_samples=3, widths=(40, 40), itemsize=4, longest=8, method=METHODS["DataInf"]
    )
    plans = [make_plan(size, memory=2**21, rows="zarr", tile=(q, None)) for q in (3, 4096)]
    assert plans[0] == plans[1]


def test_gradients_that_are_too_large_are_not_called_zero(tmp_path):
    model = nn.Linear(2, 1, bias=False).double()
    x, y = 1e80 * torch.ones(4, 2).double(), 1e90 * torch.ones(4, 1).double()
    with pytest.raises(DampingError, match=r"squared gradients of blocks .* overflow"):
        ExactInfluence(model, F.mse_loss).fit([(x, y)])
