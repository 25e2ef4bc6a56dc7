"""From model and batch to one loss per sample."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import Objective, ObjectiveError, SequenceClassification
from pydvl_datainf.objectives import OutputLoss, as_objective, check_losses

X, Y = torch.randn(4, 3), torch.randn(4, 2)
LABELS = torch.tensor([0, 1, 1, 0])


def looping(outputs, y):
    """A loss that vmap refuses, since it branches on a value."""
    return F.mse_loss(outputs, y) if outputs.sum() > 0 else 2 * F.mse_loss(outputs, y)


@pytest.mark.parametrize(
    "loss", [F.mse_loss, nn.MSELoss(), nn.MSELoss(reduction="sum"), nn.L1Loss(), looping]
)
def test_each_sample_sees_the_loss_as_a_batch_of_one(loss):
    model = nn.Linear(3, 2)
    losses = OutputLoss(loss).losses(model, (X, Y))
    alone = torch.stack([loss(model(X[i : i + 1]), Y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(losses, alone)
    assert losses.std() > 0


def test_integer_targets_without_a_second_dimension():
    model = nn.Linear(3, 2)
    losses = OutputLoss(nn.CrossEntropyLoss()).losses(model, (X, LABELS))
    torch.testing.assert_close(losses, F.cross_entropy(model(X), LABELS, reduction="none"))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x), {"b": self.b(x)}


def test_outputs_may_be_nested():
    model = TwoHeads()
    objective = OutputLoss(lambda out, y: F.mse_loss(out[0], y) + F.l1_loss(out[1]["b"], y))
    losses = objective.losses(model, (X, Y))
    expected = (model.a(X) - Y).square().mean(1) + (model.b(X) - Y).abs().mean(1)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="none"), lambda out, y: 1.0, lambda out, y: out[..., :0]]
)
def test_a_loss_that_is_not_one_number_a_sample_is_refused(loss):
    with pytest.raises(ObjectiveError, match="one number for each sample"):
        OutputLoss(loss).losses(nn.Linear(3, 2), (X, Y))


def test_a_plain_loss_needs_pairs():
    with pytest.raises(ObjectiveError, match=r"SequenceClassification\(\)"):
        OutputLoss(F.mse_loss).losses(nn.Linear(3, 2), {"x": X, "labels": Y})


def test_objectives_pass_through_and_callables_are_wrapped():
    objective = SequenceClassification()
    assert isinstance(objective, Objective)
    assert as_objective(objective) is objective
    assert isinstance(as_objective(F.mse_loss), OutputLoss)
    assert isinstance(as_objective(nn.MSELoss()), OutputLoss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [(nn.MSELoss, r"MSELoss\(\)"), (3, "got a int"), (SequenceClassification, "class")],
)
def test_what_is_neither_is_refused(loss, message):
    with pytest.raises(ObjectiveError, match=message):
        as_objective(loss)


@pytest.mark.parametrize("losses", [torch.tensor(1.0), torch.ones(3), torch.ones(4, 1), 1.0])
def test_losses_of_another_shape_are_refused(losses):
    with pytest.raises(ObjectiveError, match=r"shape \(4,\)"):
        check_losses(losses, (X, Y))
