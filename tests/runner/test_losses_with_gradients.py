"""Training losses of a run come with its gradients, and not from passes of their own."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import DataInfInfluence, ExactInfluence, ModelError, run_influences
from pydvl_datainf.inverse import compression
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from small_runs import samples

N, M, NAME = 23, 3, "training_loss"


def network():
    torch.manual_seed(0)
    layers = OrderedDict(first=nn.Linear(3, 5), act=nn.Tanh(), loss=nn.Linear(5, 4))
    return nn.Sequential(layers).double()  # a layer called "loss"


def batches(size=4):
    return list(zip(*(side.split(size) for side in samples(N, 1)), strict=True))


def run(store, influence=None, **settings):
    influence = influence or DataInfInfluence(network(), F.cross_entropy)
    settings = {"tile": (2, 5), "progress": False, **settings}
    return run_influences(influence, samples(M, 2), batches(), store, **settings)


@pytest.fixture(scope="module")
def truth():
    with torch.no_grad():
        return torch.stack(dense.sample_losses(network(), F.cross_entropy, samples(N, 1))).numpy()


def assert_came_along(done, truth):
    np.testing.assert_allclose(done.training_loss(), truth, rtol=1e-9, atol=1e-12)
    assert "training losses" not in done.attrs["seconds"]
    done.check()


GIVEN = {
    "memory": {"rows": "memory"},
    "zarr": {"rows": "zarr"},
    "recompute": {"rows": "recompute", "self_influence": True},
    "all in the sample": {"rows": "compressed", "rank": 4},
    "some in the sample": {"rows": "compressed", "rank": 4, "basis_sample": 6},
    "top": {"rows": "zarr", "top_k": 2},
}


@pytest.mark.parametrize("given", GIVEN)
def test_losses_come_with_gradients(tmp_path, monkeypatch, truth, given):
    monkeypatch.setattr(compression, "CHECKED", 5)
    done = run(tmp_path / "run.zarr", **GIVEN[given])
    assert_came_along(done, truth)
    again = "training losses" in run(tmp_path / "run.zarr", **GIVEN[given]).attrs["seconds"]
    assert not again


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_they_come_with_the_gradients_that_scores_need(tmp_path, truth, rows):
    """Premise: where λ is given, no pass is made for norms."""
    done = run(tmp_path / "run.zarr", DataInfInfluence(network(), F.cross_entropy, 0.1), rows=rows)
    assert "gradients" not in done.attrs["seconds"]
    assert_came_along(done, truth)


def test_another_curvature_has_the_losses_at_the_given_labels(tmp_path, truth):
    influence = ExactInfluence(network(), F.cross_entropy, curvature="gauss-newton")
    assert_came_along(run(tmp_path / "run.zarr", influence, rows="zarr"), truth)


@pytest.mark.parametrize("task", ["write_sample", "write_basis", "write_rows"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch, truth, task):
    monkeypatch.setattr(compression, "CHECKED", 5)
    settings = {"rows": "compressed", "rank": 4, "basis_sample": 6}
    whole = run(tmp_path / "whole.zarr", **settings)
    calls, write = [], getattr(tasks, task)

    def stopping(wanted, context, inputs):
        calls.append(wanted)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(wanted, context, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, task, stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run.zarr", **settings)
    assert_came_along(run(tmp_path / "run.zarr", **settings), truth)
    for name in sorted(path.name for path in (tmp_path / "whole.zarr" / NAME / "c").iterdir()):
        chunks = (tmp_path / f"{kind}.zarr" / NAME / "c" / name for kind in ("run", "whole"))
        first, second = (chunk.read_bytes() for chunk in chunks)
        assert first == second
    assert whole.plan.train_tile < N  # the premise: several chunks


def test_a_damaged_loss_of_compressed_rows_is_computed_again(tmp_path, truth):
    run(tmp_path / "run.zarr", rows="compressed", rank=4)
    (tmp_path / "run.zarr" / NAME / "c/1").unlink()
    gradients = InfluenceRun(tmp_path / "run.zarr").attrs["gradients"]
    done = run(tmp_path / "run.zarr", rows="compressed", rank=4)
    np.testing.assert_allclose(done.training_loss(), truth, rtol=1e-9, atol=1e-12)
    assert done.attrs["gradients"] == gradients
    done.check()


def test_a_block_cannot_have_the_name_that_losses_have(tmp_path):
    blocks = {"loss.": ["first.weight"], "b": ["loss.weight"]}
    influence = DataInfInfluence(network(), F.cross_entropy, block_structure=blocks)
    with pytest.raises(ModelError, match=r"keeps losses under 'loss\.'. Give the block another"):
        run(tmp_path / "run.zarr", influence)
