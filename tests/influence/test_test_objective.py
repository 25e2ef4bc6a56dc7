"""Influences on another objective than the loss: of test samples alone, in Python and in runs."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    InfluenceRun,
    Margin,
    ModelError,
    ObjectiveError,
    StoreExistsError,
    approximation_error,
    run_influences,
)
from small_runs import network, samples

N, M = 11, 5
INVERSES = {
    "datainf": (DataInfInfluence, {}, dense.datainf_matrix),
    "exact": (ExactInfluence, {}, dense.exact_matrix),
    "scaled": (HessianFreeInfluence, {"scaled": True}, dense.scaled_identity),
}
NAMES = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


TRAIN, TEST = samples(N, 1), samples(M, 2)


def minus_margin(z, y):
    others = torch.cat([z[0, : y[0]], z[0, y[0] + 1 :]])
    return others.max() - z[0, y[0]]


def rows_of(loss, data):
    return {block: dense.gradients(network(), loss, data, names) for block, names in NAMES.items()}


def oracle(test, train=TRAIN, inverse=dense.datainf_matrix):
    """Of rows of test samples by block, (m, n); the inverse is that of the training losses."""
    fit, own = rows_of(F.cross_entropy, TRAIN), rows_of(F.cross_entropy, train)
    damping = {block: dense.automatic_damping(rows) for block, rows in fit.items()}
    return dense.influences(test, fit, own, damping, inverse)


def margins():
    return rows_of(minus_margin, TEST)


def made(kind="datainf", **settings):
    model, options, _ = INVERSES[kind]
    settings = {"test_objective": Margin(), **options, **settings}
    return model(network(), F.cross_entropy, **settings)


def close(actual, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        torch.as_tensor(np.asarray(actual)), expected, rtol=1e-9, atol=1e-9 * scale
    )


@pytest.mark.parametrize("kind", INVERSES)
def test_influences_are_of_margins_of_test_and_losses_of_training_samples(kind):
    influence = made(kind).fit([TRAIN])
    expected = oracle(margins(), inverse=INVERSES[kind][2])
    close(influence.influences(*TEST, *TRAIN), expected)
    close(influence.training_influences(*TEST), expected)
    factors = influence.influence_factors(*TEST)
    close(influence.influences_from_factors(factors, *TRAIN), expected)
    by_block = influence.influences_by_block(*TEST, *TRAIN)
    close(sum(by_block.values()), expected)


def test_the_loss_of_test_samples_gives_other_influences():
    """The control: the test objective is not ignored."""
    plain = made(test_objective=None).fit([TRAIN]).influences(*TEST, *TRAIN)
    with pytest.raises(AssertionError):
        close(plain, oracle(margins()))
    close(plain, oracle(rows_of(F.cross_entropy, TEST)))


def test_more_test_than_training_samples():
    few = samples(2, 7)
    expected = oracle(margins(), few)
    close(made().fit([TRAIN]).influences(*TEST, *few), expected)


def test_without_training_samples_test_samples_take_their_place_with_their_loss():
    expected = oracle(margins(), TEST)
    close(made().fit([TRAIN]).influences(*TEST), expected)


def test_a_step_along_a_helpful_sample_raises_the_margin():
    """The sign, from two models: plain products of gradients tell the first-order change."""
    influence = HessianFreeInfluence(network(), F.cross_entropy, test_objective=Margin())
    score = influence.fit([TRAIN]).influences(*TEST, *TRAIN)[0]
    x, y = TEST[0][:1], TEST[1][:1]
    before = Margin().losses(network(), (x, y)).item()
    for k in range(N):
        model, rate = network(), 1e-7
        F.cross_entropy(model(TRAIN[0][k : k + 1]), TRAIN[1][k : k + 1]).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
        lowered = before - Margin().losses(model, (x, y)).item()
        assert lowered / rate == pytest.approx(float(score[k]), rel=1e-4, abs=1e-6)


def test_training_gradients_self_influences_and_losses_are_of_the_loss():
    influence, plain = made().fit([TRAIN]), made(test_objective=None).fit([TRAIN])
    assert influence.damping == plain.damping
    close(influence.self_influences(), plain.self_influences())
    close(influence.losses(TRAIN), plain.losses(TRAIN))
    close(influence.loss_gradients(*TRAIN), plain.loss_gradients(*TRAIN))
    for block, rows in influence.test_gradients_by_block(*TEST).items():
        close(rows, margins()[block])


def test_the_comparison_with_the_exact_inverse_is_of_its_influences():
    found = approximation_error(made().fit([TRAIN]), *TEST)
    ours, exact = (oracle(margins(), inverse=INVERSES[k][2]) for k in ("datainf", "exact"))
    error = float((ours - exact).norm() / exact.norm())
    assert found.score_error == pytest.approx(error, rel=1e-9)


def test_a_function_of_outputs_and_targets_may_be_asked():
    influence = made(test_objective=lambda z, y: minus_margin_of(z, y)).fit([TRAIN])
    close(influence.influences(*TEST, *TRAIN), oracle(margins()))


def minus_margin_of(z, y):
    own = z.gather(1, y[:, None])
    return (z.scatter(1, y[:, None], -torch.inf).amax(1) - own[:, 0]).sum()


def test_pickling_keeps_it():
    influence = pickle.loads(pickle.dumps(made().fit([TRAIN])))
    close(influence.influences(*TEST, *TRAIN), oracle(margins()))


def test_what_is_no_objective_is_refused():
    with pytest.raises(ObjectiveError, match="Margin is a class; pass an instance"):
        made(test_objective=Margin)
    with pytest.raises(ObjectiveError, match=r"has a method losses\(model, batch\); got a str"):
        made(test_objective="margin")


def test_an_objective_that_does_not_fit_the_model_is_refused():
    model = nn.Linear(3, 1).double()
    influence = DataInfInfluence(model, F.mse_loss, test_objective=Margin())
    x = TRAIN[0]
    influence.fit([(x, x[:, :1])])
    with pytest.raises(ObjectiveError, match="of two classes or more"):
        influence.influences(x, TRAIN[1])


# Runs


def loader(data):
    return DataLoader(TensorDataset(*data), 4)


def run(store, train=None, influence=None, **settings):
    train = loader(TRAIN) if train is None else train
    influence = influence or made()
    settings = {"progress": False, **settings}
    return run_influences(influence, loader(TEST), train, store, **settings)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_runs_are_of_margins(tmp_path, rows):
    done = run(tmp_path / "run.zarr", rows=rows, tile=(2, 5), exact_sample=N)
    close(done.scores[...], oracle(margins()))
    assert done.attrs["sign"].endswith("lowers the test sample's objective of its own")
    assert "Margin(against='best'" in done.attrs["fingerprint"]["test objective"]
    expected = approximation_error(made().fit([TRAIN]), *TEST).score_error
    assert done.approximation_error.score_error == pytest.approx(expected, rel=1e-6)
    done.check()


def test_the_test_objective_is_part_of_what_a_run_is(tmp_path):
    run(tmp_path / "run.zarr")
    assert run(tmp_path / "run.zarr").is_complete  # the same goes on
    for other in (None, Margin("all")):
        with pytest.raises(StoreExistsError, match=r"test objective: .*Margin.*in the store"):
            run(tmp_path / "run.zarr", influence=made(test_objective=other))
    plain = run(tmp_path / "plain.zarr", influence=made(test_objective=None))
    assert "test objective" not in plain.attrs["fingerprint"]
    assert plain.attrs["sign"].endswith("lowers the test sample's loss")


def test_stored_rows_answer_queries_of_another_objective(tmp_path):
    first = run(tmp_path / "first.zarr", influence=made(test_objective=None), rows="zarr")
    query = run(tmp_path / "query.zarr", InfluenceRun(first.store), rows="zarr")
    whole = run(tmp_path / "whole.zarr", rows="zarr")
    np.testing.assert_array_equal(query.scores[...], whole.scores[...])
    assert not np.allclose(query.scores[...], first.scores[...])
    np.testing.assert_array_equal(query.training_loss(), whole.training_loss())


def test_groups_have_the_mean_influence_on_their_margins(tmp_path):
    done = run(tmp_path / "run.zarr", rows="memory", query_groups=["a"] * M)
    close(done.scores[...], oracle(margins()).mean(0, keepdim=True))


def test_a_run_refuses_an_objective_that_does_not_fit_before_a_store_is_made(tmp_path):
    x = TRAIN[0]
    influence = DataInfInfluence(nn.Linear(3, 1).double(), F.mse_loss, test_objective=Margin())
    with pytest.raises(ObjectiveError, match="of two classes or more"):
        run_influences(influence, TEST, (x, x[:, :1]), tmp_path / "run.zarr", progress=False)
    assert not (tmp_path / "run.zarr").exists()


def test_a_test_sample_without_a_margin_is_named(tmp_path):
    x, y = TEST[0], TEST[1].clone()
    y[0] = -100
    ids = {"test": list("abcde")}
    with pytest.raises(ModelError, match=r"Position 0 of the test data \(id 'a'\)"):
        run_influences(made(), (x, y), TRAIN, tmp_path / "run.zarr", ids=ids, progress=False)
