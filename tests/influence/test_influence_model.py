"""DataInfInfluence as pyDVL knows influence models: settings, calls, copies, changes."""

import copy
import pickle

import pytest
import torch
from pydvl.influence.torch.influence_function_model import TorchInfluenceFunctionModel
from pydvl.influence.torch.util import BlockMode
from pydvl.influence.types import UnsupportedInfluenceModeException
from pydvl.utils.exceptions import NotFittedException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fitted import M, close, datainf_problem
from pydvl_datainf import (
    BatchError,
    BlockError,
    DampingError,
    DataInfError,
    DataInfInfluence,
    ModelError,
    ObjectiveError,
    SourceError,
)


def test_is_a_pydvl_influence_model():
    p = datainf_problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, p.structure)
    assert isinstance(influence, TorchInfluenceFunctionModel)
    assert influence.n_parameters == 40
    assert not influence.is_thread_safe
    assert not influence.is_fitted
    assert influence.fit([p.fitted]) is influence
    assert influence.is_fitted
    assert influence.influence_factors(*p.test).shape == (M, 40)
    assert influence.model_dtype == torch.float64


def test_it_shows_what_it_is_and_whether_it_is_fitted():
    influence = DataInfInfluence(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)), F.mse_loss)
    told = "<DataInfInfluence of Sequential: 1,292 parameters in 2 blocks, "
    assert repr(influence) == f"{told}not fitted>"
    influence.fit([(torch.randn(5, 40), torch.randn(5, 2))])
    assert repr(influence) == f"{told}fitted on 5 samples>"


def test_block_modes_are_accepted():
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1, BlockMode.LAYER_WISE).fit([p.fitted])
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, 0.1))


def test_the_inverse_is_a_symmetric_operator_on_flat_vectors():
    p = datainf_problem("some")
    influence = DataInfInfluence(p.model, p.loss, 0.1, p.structure).fit([p.fitted])
    matrix = influence._solve_hvp(torch.eye(40, dtype=torch.float64))
    close(matrix, matrix.T)
    close(influence._loss_grad(*p.test) @ matrix, influence.influence_factors(*p.test))
    close(influence.loss_gradients(*p.test), influence._loss_grad(*p.test))


@pytest.mark.parametrize(
    "call",
    [
        lambda i, p: i.influences(*p.test),
        lambda i, p: i.influences_by_block(*p.test),
        lambda i, p: i.influence_factors(*p.test),
        lambda i, p: i.influences_from_factors(torch.zeros(1, 44), *p.test),
        lambda i, p: i.training_influences(*p.test),
        lambda i, p: i.self_influences(),
        lambda i, p: i.self_influences([p.test]),
        lambda i, p: i.damping,
    ],
)
def test_nothing_is_answered_before_fit(call):
    p = datainf_problem()
    with pytest.raises(NotFittedException):
        call(DataInfInfluence(p.model, p.loss, 0.1), p)


def test_calls_that_make_no_sense_are_refused():
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    x, y = p.train
    with pytest.raises(ValueError, match="y came without"):
        influence.influences(*p.test, None, y)
    with pytest.raises(ValueError, match="x came without"):
        influence.influences(*p.test, x)
    with pytest.raises(ValueError, match="x came without"):
        influence.influences(p.test[0])
    for args in ((*p.test,), (*p.test, *p.train)):
        with pytest.raises(UnsupportedInfluenceModeException):
            influence.influences(*args, mode="sideways")
    with pytest.raises(UnsupportedInfluenceModeException):
        influence.influences_from_factors(torch.zeros(1, 44), *p.train, mode="sideways")
    with pytest.raises(BlockError, match="44"):
        influence.influences_from_factors(torch.zeros(1, 43), *p.train)
    with pytest.raises(ObjectiveError):
        influence.influences({"x": x, "labels": y})


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"regularization": 0}, DampingError),
        ({"regularization": {"nothing": 1.0}}, DampingError),
        ({"block_structure": "modules"}, BlockError),
        ({"gradients": "fast"}, ModelError),
        ({"rows": "disk"}, SourceError),
        ({"batch_size": 0}, BatchError),
        ({"batch_size": True}, BatchError),
        ({"loss": nn.MSELoss}, ObjectiveError),
    ],
)
def test_bad_settings_are_refused_at_construction(kwargs, error):
    with pytest.raises(error) as caught:
        DataInfInfluence(**{"model": nn.Linear(3, 2), "loss": F.mse_loss} | kwargs)
    assert isinstance(caught.value, DataInfError)
    assert isinstance(caught.value, ValueError)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(BlockError, match="no trainable parameters"):
        DataInfInfluence(nn.Linear(3, 2).requires_grad_(False), F.mse_loss)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_pickles_with_its_fitted_state_and_without_duplicates(rows):
    p = datainf_problem()
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))
    data = torch.randn(2, 300), torch.randint(0, 4, (2,))
    unfitted = DataInfInfluence(model, p.loss, 0.1, rows=rows)
    assert len(pickle.dumps(unfitted)) < 1.1 * len(pickle.dumps(model)) + 2**14
    loader = DataLoader(TensorDataset(*p.fitted), batch_size=4, num_workers=2)
    influence = DataInfInfluence(p.model, p.loss, rows=rows).fit(loader)
    copied = pickle.loads(pickle.dumps(influence))
    close(copied.training_influences(*p.test), influence.training_influences(*p.test))
    assert copied.model_params.keys() == influence.model_params.keys()
    assert unfitted.fit([data]).influences(*data).shape == (2, 2)


def test_moving_to_a_device_keeps_everything():
    p = datainf_problem()
    for rows in ("memory", "recompute"):
        influence = DataInfInfluence(copy.deepcopy(p.model), p.loss, rows=rows).fit([p.fitted])
        assert influence.to("cpu") is influence
        assert influence.model_device == torch.device("cpu")
        close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, "auto"))
    assert DataInfInfluence(nn.Linear(3, 2), F.mse_loss).to(torch.device("cpu")).is_fitted is False


# Models that change


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.data.mul_(1.001),
        lambda model: model[2].bias.detach().numpy().__setitem__(0, 9.0),
        lambda model: setattr(model[2], "bias", nn.Parameter(torch.zeros(4).double())),
        lambda model: model[1].register_buffer("late", torch.zeros(1)),
    ],
)
def test_a_model_that_changed_after_fit_is_noticed(rows, change):
    p = datainf_problem()
    model = copy.deepcopy(p.model)
    influence = DataInfInfluence(model, p.loss, 0.1, rows=rows).fit([p.fitted])
    change(model)
    for call in (
        lambda: influence.influences(*p.test),
        lambda: influence.influence_factors(*p.test),
        lambda: influence.influences_from_factors(torch.zeros(1, 44), *p.test),
        lambda: influence.training_influences(*p.test),
        lambda: influence.self_influences(),
    ):
        with pytest.raises(ModelError, match="changed after fit"):
            call()
    assert influence.fit([p.fitted]).influences(*p.test).shape == (M, M)


def test_a_change_that_was_undone_is_no_change():
    p = datainf_problem()
    model = copy.deepcopy(p.model)
    influence = DataInfInfluence(model, p.loss, 0.1).fit([p.fitted])
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model[0].weight.data.add_(0.0)
    assert influence.influences(*p.test).shape == (M, M)


def test_a_failed_fit_leaves_the_earlier_one():
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss).fit([p.fitted])
    with pytest.raises(SourceError):
        influence.fit([])
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, "auto"))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).eval()
    data = torch.randn(5, 3), torch.randn(5, 2)
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    influence = DataInfInfluence(model, F.mse_loss, rows="recompute").fit([data])
    influence.influences(*data, *data, mode="perturbation")
    influence.training_influences(*data)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
