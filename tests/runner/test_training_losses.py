"""Training losses in the store of a run: however it is cut, done, stopped, damaged or queried."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from damage import flip_a_byte
from pydvl_datainf import DataInfInfluence, StoreError, run_influences
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from small_runs import network, samples

N, M = 13, 5
NAME = "training_loss"


def loader(length, seed, batch_size=4):
    return DataLoader(TensorDataset(*samples(length, seed)), batch_size)


def run(store, train=None, influence=None, **settings):
    return run_influences(
        influence or DataInfInfluence(network(), F.cross_entropy),
        loader(M, 2),
        loader(N, 1) if train is None else train,
        store,
        **{"tile": (2, 5), "progress": False, **settings},
    )


def truth(n=N):
    with torch.no_grad():
        losses = dense.sample_losses(network(), F.cross_entropy, samples(n, 1))
    return torch.stack(losses).numpy()


def close(losses, expected):
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    store = tmp_path_factory.mktemp("kept") / "run.zarr"
    run(store, rows="zarr", self_influence=True)
    return store


@pytest.fixture
def old(tmp_path, kept):
    """A run of a version that knew no training losses, with the count of its gradients."""
    store = Store(shutil.copytree(kept, tmp_path / "old.zarr"))
    store.delete(NAME)
    store.finish(["self_influence"])
    return tmp_path / "old.zarr"


@pytest.mark.parametrize("rows", ["memory", "zarr", "recompute"])
@pytest.mark.parametrize("settings", [{}, {"tile": (50, 50)}, {"top_k": 2}], ids=str)
def test_losses_are_those_of_each_sample_alone(tmp_path, rows, settings):
    done = run(tmp_path / "run.zarr", rows=rows, **settings)
    close(done.training_loss(), truth())
    assert done.has_training_loss
    assert done.training_loss().dtype == np.float64
    assert NAME in done.attrs["extras"]
    done.check()


def test_one_sample(tmp_path):
    close(run(tmp_path / "run.zarr", train=loader(1, 1)).training_loss(), truth(1))


def test_given_damping_takes_no_rows_for_them(tmp_path):
    influence = DataInfInfluence(network(), F.cross_entropy, 0.1)
    close(run(tmp_path / "run.zarr", influence=influence).training_loss(), truth())


def test_a_stop_among_the_losses_keeps_those_that_are_there(old, monkeypatch, kept):
    """Premise: they do not come with gradients where the rows of an old run are there."""
    store, calls, write = old, [], tasks.write_losses

    def stopping(tile, context, inputs):
        calls.append(tile)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(tile, context, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_losses", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(store, rows="zarr", self_influence=True)
    with pytest.raises(StoreError, match="has no training losses"):
        InfluenceRun(store).training_loss()
    first = (store / NAME / "c/0").stat().st_mtime_ns
    gradients = InfluenceRun(store).attrs["gradients"]
    done = run(store, rows="zarr", self_influence=True)
    assert (store / NAME / "c/0").stat().st_mtime_ns == first
    assert done.attrs["gradients"] == gradients
    for chunk in "012":
        name = f"{NAME}/c/{chunk}"
        assert (store / name).read_bytes() == (kept / name).read_bytes()


@pytest.mark.parametrize("damage", [flip_a_byte, lambda file: file.unlink()], ids=["bit", "gone"])
def test_damage_is_found_and_repaired_without_gradients(tmp_path, kept, damage):
    store = shutil.copytree(kept, tmp_path / "run.zarr")
    damage(store / NAME / "c/1")
    damaged = InfluenceRun(store)
    assert damaged.has_training_loss
    for reading in (damaged.training_loss, damaged.suspicion, damaged.check):
        with pytest.raises(StoreError, match=f"{NAME}/c/1"):
            reading()
    done = run(store, rows="zarr", self_influence=True)
    assert (store / NAME / "c/1").read_bytes() == (kept / NAME / "c/1").read_bytes()
    assert done.attrs["gradients"] == InfluenceRun(kept).attrs["gradients"]
    done.check()


def test_a_run_without_losses_says_what_to_do_and_gets_them_without_gradients(old):
    before = InfluenceRun(old)
    before.check()
    assert not before.has_training_loss
    for reading in (before.training_loss, before.suspicion):
        with pytest.raises(StoreError, match=r"has no training losses.*run_influences again"):
            reading()
    done = run(old, rows="zarr", self_influence=True)
    close(done.training_loss(), truth())
    assert done.attrs["gradients"] == before.attrs["gradients"]
    done.check()


def test_a_query_has_the_losses_of_the_run_whose_rows_it_uses(tmp_path, kept):
    store = shutil.copytree(kept, tmp_path / "run.zarr")
    influence = DataInfInfluence(network(), F.cross_entropy)
    place = tmp_path / "query.zarr"
    query = run_influences(influence, samples(3, 4), InfluenceRun(store), place, progress=False)
    assert NAME not in query.store
    close(query.training_loss(), truth())
    relative = query.mean_influence() / np.sqrt(InfluenceRun(store).self_influence())
    np.testing.assert_allclose(query.relative_influence(), relative)
    assert sorted(query.suspicion())[-1] <= N
    shutil.rmtree(store)
    assert not query.has_training_loss
    with pytest.raises(StoreError, match="no store at"):
        query.training_loss()


def test_a_query_of_an_old_run_has_none(tmp_path, old):
    influence = DataInfInfluence(network(), F.cross_entropy)
    place = tmp_path / "query.zarr"
    query = run_influences(influence, samples(3, 4), InfluenceRun(old), place, progress=False)
    assert not query.has_training_loss
    with pytest.raises(StoreError, match=r"old\.zarr has no training losses"):
        query.training_loss()


def test_float32_losses_are_float32(tmp_path):
    x, y = samples(N, 1)
    model = DataInfInfluence(network().float(), F.cross_entropy)
    tests = [(a.float(), b) for a, b in loader(M, 2)]
    done = run_influences(model, tests, [(x.float(), y)], tmp_path / "run.zarr", progress=False)
    assert done.training_loss().dtype == np.float32
    np.testing.assert_allclose(done.training_loss(), truth(), rtol=1e-5, atol=1e-6)


def test_suspicion_is_the_average_of_two_ranks(kept):
    done = InfluenceRun(kept)
    loss, relative = done.training_loss(), done.relative_influence()
    for k, found in enumerate(done.suspicion()):
        ranks = (loss <= loss[k]).sum() + (relative >= relative[k]).sum()
        assert found == ranks / 2  # without ties, which these have not
    assert len(set(loss)) == len(set(relative)) == N


def test_suspicion_needs_self_influences(tmp_path):
    with pytest.raises(StoreError, match="has no self-influences"):
        run(tmp_path / "run.zarr", rows="zarr").suspicion()
