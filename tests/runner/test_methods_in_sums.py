"""What methods and questions of their own leave in a run, and what a sum of such runs is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import (
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    InfluenceRun,
    LissaInfluence,
    Margin,
    PlanError,
    StoreError,
    run_influences,
    sum_runs,
)

KINDS = {
    "lissa": (LissaInfluence, {"iterations": 5000, "tolerance": 1e-6}),
    "ekfac": (EkfacInfluence, {}),
    "exact": (ExactInfluence, {}),
    "datainf": (DataInfInfluence, {}),
}


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (length,), generator=generator)


def influence(kind, seed, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    make, own = KINDS[kind]
    return make(model, F.cross_entropy, **own | settings)


def run(store, kind, seed=0, **settings):
    made, test, train = influence(kind, seed, **settings), samples(4, 2), samples(9, 1)
    return run_influences(made, test, train, store, rows="zarr", progress=False)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", ["exact", "ekfac", "lissa"])
def test_runs_of_any_two_methods_can_be_added(tmp_path, first, second):
    parts = [run(tmp_path / "a.zarr", first), run(tmp_path / "b.zarr", second, 1)]
    total = sum_runs(parts, tmp_path / "sum.zarr", [2, 0.5], progress=False)
    expected = 2 * parts[0].scores[...] + 0.5 * parts[1].scores[...]
    np.testing.assert_allclose(total.scores[...], expected, rtol=1e-12)
    total.check()
    assert InfluenceRun(tmp_path / "sum.zarr").is_complete
    assert not {"method settings", "layers"} & total.attrs["fingerprint"].keys()
    assert total.residual is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 7])
def test_every_method_asks_for_margins_under_any_damping(tmp_path, kind, scale):
    settings = {"test_objective": Margin(), "damping_scale": scale}
    done = run(tmp_path / "run.zarr", kind, **settings)
    fitted = influence(kind, 0, **settings).fit([samples(9, 1)])
    expected = fitted.training_influences(*samples(4, 2)).numpy()
    scale_of = np.abs(expected).max()
    np.testing.assert_allclose(done.scores[...], expected, rtol=2e-3, atol=2e-3 * scale_of)
    own = influence(kind, 0, damping_scale=scale).fit([samples(9, 1)])
    of_loss = own.training_influences(*samples(4, 2)).numpy()
    assert np.abs(of_loss - expected).max() > 0.1 * scale_of  # another question
    np.testing.assert_allclose(list(done.damping.values()), list(own.damping.values()), rtol=1e-12)


def test_runs_that_ask_other_questions_are_not_added(tmp_path):
    asked = run(tmp_path / "margin.zarr", "datainf", test_objective=Margin())
    with pytest.raises(PlanError, match="test objective"):
        sum_runs([run(tmp_path / "loss.zarr", "datainf"), asked], tmp_path / "sum.zarr")
    assert not (tmp_path / "sum.zarr").exists()


def test_training_losses_are_those_of_every_method(tmp_path):
    found = {kind: run(tmp_path / f"{kind}.zarr", kind).training_loss() for kind in KINDS}
    x, y = samples(9, 1)
    with torch.no_grad():
        expected = F.cross_entropy(influence("exact", 0).model(x), y, reduction="none").numpy()
    for losses in found.values():
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_a_sum_has_no_training_losses_and_says_where_they_are(tmp_path):
    parts = [run(tmp_path / "a.zarr", "exact"), run(tmp_path / "b.zarr", "exact", 1)]
    total = sum_runs(parts, tmp_path / "sum.zarr", progress=False)
    for ask in (total.training_loss, total.suspicion):
        with pytest.raises(StoreError, match=r"a sum of runs.*parts\[0\]|has no self-influences"):
            ask()
    assert InfluenceRun(total.parts[1].place).training_loss().shape == (9,)
