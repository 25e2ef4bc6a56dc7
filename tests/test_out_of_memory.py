"""Memory of a device that runs out: told as that, with what to lower."""

import pytest
import torch
from click.testing import CliRunner
from pydvl.valuation.dataset import Dataset
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, cli
from pydvl_datainf.cli import running
from pydvl_datainf.huggingface.models import loading
from pydvl_datainf.objectives import OutputLoss
from pydvl_datainf.valuation import DataInfValuation
from tiny import pair

FULL = torch.cuda.OutOfMemoryError
TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB."
ADVICE = "lower batch_size, or for texts max_tokens"


class Scaled(nn.Module):
    """A layer for which there is no rule; its memory runs out once it is called so many times."""

    def __init__(self, calls):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise FULL(TOLD)
        return x * self.weight


class FullLoss:
    """A plain loss that lacks memory for the batch, and has enough for one sample at a time."""

    def __init__(self, error):
        self.error = error

    def __call__(self, outputs, y):
        if torch._C._functorch.is_batchedtensor(outputs):
            raise self.error(TOLD)
        return F.mse_loss(outputs, y)


def assert_advised(caught):
    """The advice is there once, and nothing else."""
    (note,) = caught.value.__notes__
    assert ADVICE in note


@pytest.mark.parametrize(
    ("gradients", "calls"), [*(("auto", i) for i in range(6)), ("functional", 0), ("functional", 1)]
)
def test_memory_that_runs_out_in_a_layer_is_told(gradients, calls):
    influence = DataInfInfluence(Scaled(calls), F.mse_loss, gradients=gradients)
    with pytest.raises(FULL, match="Tried to allocate") as caught:
        influence.loss_gradients(*pair())
    assert_advised(caught)


@pytest.mark.parametrize("gradients", ["auto", "functional"])
def test_memory_that_runs_out_in_a_loss_is_told(gradients):
    influence = DataInfInfluence(nn.Linear(3, 3), FullLoss(FULL), gradients=gradients)
    with pytest.raises(FULL, match="Tried to allocate") as caught:
        influence.loss_gradients(*pair())
    assert_advised(caught)


def test_a_loss_that_vmap_refuses_is_called_sample_by_sample():
    model, (x, y) = nn.Linear(3, 3), pair()
    losses = OutputLoss(FullLoss(RuntimeError)).losses(model, (x, y))
    torch.testing.assert_close(losses, (model(x) - y).square().mean(1))


def test_torch_before_2_5_has_the_error_in_one_place_only(monkeypatch):
    monkeypatch.delattr(torch, "OutOfMemoryError", raising=False)
    test_a_loss_that_vmap_refuses_is_called_sample_by_sample()
    test_memory_that_runs_out_in_a_loss_is_told("auto")
    test_memory_that_runs_out_in_the_perturbation_mode_is_told()
    test_memory_that_runs_out_in_the_check_of_padding_is_told()
    test_memory_that_runs_out_in_a_valuation_is_not_blamed_on_the_inputs()
    test_memory_that_runs_out_while_a_model_is_loaded_is_told()
    test_the_command_line_tells_what_to_lower_where_memory_runs_out(monkeypatch)


def test_memory_that_runs_out_in_the_perturbation_mode_is_told():
    model, data = Scaled(10**6), pair()
    influence = DataInfInfluence(model, F.mse_loss, 0.1).fit([data])
    factors = influence.influence_factors(*data)
    model.calls = 0
    with pytest.raises(FULL, match="Tried to allocate") as caught:
        influence.influences_from_factors(factors, *data, mode="perturbation")
    assert_advised(caught)


class Longest(nn.Module):
    """Its memory runs out for texts of two tokens, which only the check of padding has."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)

    def forward(self, input_ids, attention_mask):
        if input_ids.shape[1] == 2:
            raise FULL(TOLD)
        return (self.embedding(input_ids) * attention_mask[..., None]).sum((1, 2))


class Summed:
    def losses(self, model, batch):
        return model(**batch).square()


def test_memory_that_runs_out_in_the_check_of_padding_is_told():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]), "attention_mask": mask}
    with pytest.raises(FULL, match="Tried to allocate") as caught:
        DataInfInfluence(Longest(), Summed()).loss_gradients(batch)
    assert_advised(caught)


def test_memory_that_runs_out_in_a_valuation_is_not_blamed_on_the_inputs():
    x, y = pair()
    influence = DataInfInfluence(nn.Linear(3, 3), FullLoss(FULL), 0.1)
    data = Dataset(x.numpy(), y.numpy(), multi_output=True)
    with pytest.raises(FULL, match="Tried to allocate") as caught:
        DataInfValuation(influence, data).fit(data)
    assert_advised(caught)


def test_memory_that_runs_out_while_a_model_is_loaded_is_told():
    with pytest.raises(FULL, match="Tried to allocate"), loading("the model", "here"):
        raise FULL(TOLD)


def test_the_command_line_tells_what_to_lower_where_memory_runs_out(monkeypatch):
    def full(*_, **__):
        raise FULL(TOLD + "\nSee documentation")

    monkeypatch.setattr(running, "check_extra", full)
    result = CliRunner().invoke(cli.main, ["run"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: The device has too little memory. To need less memory, {ADVICE}. {TOLD}\n"
    )
