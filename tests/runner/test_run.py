"""run_influences against the dense oracle, however rows are kept and work is cut."""

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence, ModelError, PlanError, compute_self_influence
from small_runs import ROWS, M, N, build, close, loader, network, run, samples, train_loader
from undisturbed import count_gradients

# Agreement with the formula


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize(
    "cut",
    [{}, {"tile": (3, 4)}, {"tile": (1, 1)}, {"tile": (50, 50)}, {"memory": 4000}],
    ids=["default", "uneven", "single", "whole", "little memory"],
)
def test_scores_are_those_of_the_formula(tmp_path, truth, rows, cut):
    cut = {**cut, "memory": 12000} if rows == "memory" and "memory" in cut else cut
    done = run(tmp_path / "run.zarr", rows=rows, self_influence=True, **cut)
    assert done.plan.rows == rows
    close(done.scores[...], truth["scores"].sum(1))
    close(done.mean_influence(), truth["scores"].sum(1).mean(0))
    close(done.self_influence(), truth["selves"])
    close(done.relative_influence(), done.mean_influence() / np.sqrt(truth["selves"]))
    close(list(done.damping.values()), list(truth["damping"].values()))
    close(zarr.open_group(tmp_path / "run.zarr")["squared_norms"][...], truth["norms"])
    done.check()


def test_little_memory_means_several_groups_of_queries(tmp_path):
    """The premise of one of the cases above."""
    assert len(run(tmp_path / "run.zarr", rows="recompute", memory=4000).plan.groups) > 1


def test_rows_on_disk_change_scores_by_a_thousandth_of_their_root_mean_square(tmp_path, truth):
    done = run(tmp_path / "run.zarr", rows="zarr")
    compute_self_influence(done, progress=False)
    expected = truth["scores"].sum(1)
    rms = np.sqrt((expected**2).mean(1, keepdims=True))
    error = np.abs(done.scores[...] - expected) / rms
    assert 0 < error.max() < 1e-3
    close(done.self_influence(), truth["selves"], 1e-3)
    assert "self_influence" in zarr.open_group(tmp_path / "run.zarr")


def test_scores_by_block(tmp_path, truth):
    done = run(tmp_path / "run.zarr", by_block=True, tile=(2, 6))
    assert done.scores.shape == (M, 2, N)
    close(done.scores[...], truth["scores"])
    ids, scores = done.top(3, test=4)
    close(scores, np.sort(truth["scores"].sum(1)[4])[:-4:-1])
    np.testing.assert_array_equal(ids, np.argsort(-truth["scores"].sum(1)[4])[:3])


@pytest.mark.parametrize("top_k", [None, 4, 100])
def test_the_top_is_that_of_all_scores(tmp_path, truth, top_k):
    done = run(tmp_path / "run.zarr", top_k=top_k, tile=(3, 6))
    assert (done.scores is None) == (top_k is not None)
    for most, sign in (("helpful", -1), ("harmful", 1)):
        order = np.argsort(sign * truth["scores"].sum(1), axis=1)[:, :4]
        ids, scores = done.top(4, most=most)
        np.testing.assert_array_equal(ids, order)
        close(scores, np.take_along_axis(truth["scores"].sum(1), order, axis=1))
    close(done.mean_influence(), truth["scores"].sum(1).mean(0))


def test_the_top_holds_no_more_than_was_kept_and_says_so(tmp_path):
    done = run(tmp_path / "run.zarr", top_k=2)
    with pytest.raises(ValueError, match="kept the top 2"):
        done.top(3)
    with pytest.raises(ValueError, match="most must be one of"):
        done.top(1, most="useful")
    with pytest.raises(KeyError, match="No test sample has the id 99"):
        done.top(1, test=99)


def test_equal_scores_come_in_the_order_of_the_samples(tmp_path):
    x, y = (side[:1].repeat(6, *[1] * (side.ndim - 1)) for side in samples(1, 3))
    same = DataLoader(TensorDataset(x, y), 2)
    for top_k in (None, 3):
        done = run(tmp_path / f"{top_k}.zarr", train=same, top_k=top_k, tile=(7, 2))
        assert done.top(3)[0].tolist() == [[0, 1, 2]] * M
        assert done.top(3, most="harmful")[0].tolist() == [[0, 1, 2]] * M


@pytest.mark.parametrize("rows", ROWS)
def test_groups_have_the_mean_influence_of_their_samples(tmp_path, truth, rows):
    labels = ["b", "a", "b", "c", "a", "b", "b"]
    done = run(tmp_path / "run.zarr", query_groups=labels, rows=rows, tile=(2, 6))
    assert done.test_ids.tolist() == ["b", "a", "c"]
    members = [[i for i, label in enumerate(labels) if label == group] for group in "bac"]
    expected = np.stack([truth["scores"].sum(1)[rows].mean(0) for rows in members])
    close(done.scores[...], expected, 1e-3 if rows == "zarr" else 1e-9)
    assert done.attrs["gradients"] == M + N * (3 if rows == "recompute" else 1)


def test_groups_of_many_samples_are_summed_in_parts(tmp_path):
    test = loader(600, 4, 50)
    labels = np.arange(600) % 2
    done = run(tmp_path / "run.zarr", test=test, query_groups=labels)
    assert done.plan.part < 600
    each = run(tmp_path / "each.zarr", test=test).scores[...]
    close(done.scores[...], np.stack([each[labels == group].mean(0) for group in (0, 1)]))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (5, 1), (3, 11)])
def test_few_samples(tmp_path, n, m):
    test, train = loader(m, 2, 4), loader(n, 1, 4)
    expected = build().fit(train).training_influences(*samples(m, 2)).numpy()
    close(run(tmp_path / "run.zarr", test=test, train=train).scores[...], expected)


@pytest.mark.parametrize("rows", ROWS)
def test_samples_without_gradient_have_no_influence(tmp_path, rows):
    model = nn.Linear(3, 4, bias=False).double()
    x, y = samples(N, 1)
    x[::4] = 0
    influence = DataInfInfluence(model, F.cross_entropy)
    train = DataLoader(TensorDataset(x, y), 5)
    done = run(tmp_path / "run.zarr", influence, train=train, rows=rows, self_influence=True)
    assert (done.scores[:, ::4] == 0).all()
    assert (done.self_influence()[::4] == 0).all()
    assert (done.relative_influence()[::4] == 0).all()
    assert (done.scores[:, 1::4] != 0).all()


def test_float32_scores_are_float32(tmp_path, truth):
    to_float = [
        DataLoader(TensorDataset(x.float(), y), 5) for x, y in (samples(M, 2), samples(N, 1))
    ]
    influence = DataInfInfluence(network().float(), F.cross_entropy)
    done = run(tmp_path / "run.zarr", influence, *to_float)
    assert done.scores.dtype == np.float32
    close(done.scores[...], truth["scores"].sum(1), 1e-5)


# Where λ comes from


def test_given_damping_and_that_of_a_fitted_model_are_used(tmp_path):
    given = {"0": 0.5, "2": 0.01}
    influence = DataInfInfluence(network(), F.cross_entropy, given)
    assert run(tmp_path / "given.zarr", influence).damping == given
    fitted = build().fit(train_loader()).with_regularization(0.25)
    done = run(tmp_path / "fitted.zarr", fitted)
    assert done.damping == {"0": 0.25, "2": 0.25}
    close(done.scores[...], fitted.training_influences(*samples(M, 2)).numpy())
    assert fitted.is_fitted


def test_a_model_that_changed_after_fit_is_refused(tmp_path):
    fitted = build().fit(train_loader())
    fitted.model[0].weight.data[0, 0] += 1
    with pytest.raises(ModelError, match="changed after fit"):
        run(tmp_path / "run.zarr", fitted)
    assert not (tmp_path / "run.zarr").exists()


# How much is computed


@pytest.mark.parametrize(
    ("rows", "regularization", "passes", "tile"),
    [
        ("memory", "auto", 1, (2, 4)),
        ("memory", 0.1, 1, None),
        ("zarr", "auto", 1, (7, 23)),
        ("zarr", 0.1, 1, (2, 4)),
        ("recompute", 0.1, 2, None),
        ("recompute", 0.1, 2, (2, 4)),
        ("recompute", "auto", 3, (2, 4)),
        ("recompute", "auto", 3, (7, 23)),
    ],
)
def test_number_of_gradients(tmp_path, monkeypatch, rows, regularization, passes, tile):
    counted = count_gradients(monkeypatch)
    influence = DataInfInfluence(network(), F.cross_entropy, regularization)
    done = run(tmp_path / "run.zarr", influence, rows=rows, tile=tile)
    assert len(done.plan.groups) == 1
    assert sum(counted) == passes * N + M
    assert done.attrs["gradients"] == passes * N + M


# What is shown, and left as it was


def test_the_smallest_memory_works(tmp_path, truth):
    with pytest.raises(PlanError) as refused:
        run(tmp_path / "run.zarr", memory=100, rows="recompute")
    smallest = int(str(refused.value).split("memory=")[1].rstrip(".").replace(",", ""))
    done = run(tmp_path / "run.zarr", memory=smallest, rows="recompute")
    close(done.scores[...], truth["scores"].sum(1))
    with pytest.raises(PlanError):
        run(tmp_path / "less.zarr", memory=smallest - 1, rows="recompute")


def test_progress_is_shown(tmp_path, capsys):
    run(tmp_path / "run.zarr", progress=True)
    shown = capsys.readouterr().err
    assert "test gradients" in shown
    assert "scores" in shown


def test_the_model_is_left_as_it_was(tmp_path):
    influence = build()
    influence.model.train()
    before = {name: value.clone() for name, value in influence.model.state_dict().items()}
    state = torch.get_rng_state()
    run(tmp_path / "run.zarr", influence)
    assert influence.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in influence.model.state_dict().items())
    assert not influence.is_fitted
