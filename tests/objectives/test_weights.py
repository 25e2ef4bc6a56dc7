"""Class weights, whose sum a mean divides by: of a batch of one the weight would be gone."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import DataInfInfluence, NonFiniteError, ObjectiveError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.objectives import OutputLoss
from pydvl_datainf.runner.worker_inputs import Inputs

WEIGHT = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)


class Penalised(nn.Module):
    """A loss of one's own, with torch's inside."""

    def __init__(self, reduction):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(WEIGHT, reduction=reduction)

    def forward(self, outputs, y):
        return self.inner(outputs, y) + outputs.square().sum()


def weighted(reduction):
    """Losses of labels whose weights a mean cancels, one number or one a sample."""
    settings = {"weight": WEIGHT, "reduction": reduction}
    return {
        "cross entropy": nn.CrossEntropyLoss(**settings),
        "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1, **settings),
        "partial": partial(F.cross_entropy, **settings),
        "positional": lambda out, y: F.cross_entropy(out, y, WEIGHT, reduction=reduction),
        "likelihood": lambda out, y: nn.NLLLoss(**settings)(out.log_softmax(1), y),
        "own": Penalised(reduction),
        "branching": lambda out, y: F.cross_entropy(
            out * (1 if out.sum() > 0 else 2), y, **settings
        ),
        "square": lambda out, y: F.mse_loss(
            out.sum(1), y.to(out), weight=WEIGHT[y], reduction=reduction
        ),
    }


def classified():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    return model, (torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0]))


@pytest.mark.parametrize("name", weighted("mean"))
def test_a_mean_that_cancels_the_weights_is_refused(name):
    model, batch = classified()
    with pytest.raises(ObjectiveError, match=r'divides by the weights.*reduction="sum"'):
        OutputLoss(weighted("mean")[name]).losses(model, batch)


@pytest.mark.parametrize("name", weighted("sum"))
def test_a_sum_counts_each_sample_by_its_weight(name):
    model, batch = classified()
    rows = DataInfInfluence(model, weighted("sum")[name]).loss_gradients(*batch)
    names = ["weight", "bias"]
    exact = dense.gradients(model, weighted("none")[name], batch, names)
    torch.testing.assert_close(rows, exact, rtol=1e-12, atol=1e-12)
    unweighted = dense.gradients(model, weighted("mean")[name], batch, names)
    assert ((rows - unweighted).norm(dim=1) > 0.1 * unweighted.norm(dim=1)).all()


SOFT = torch.softmax(torch.arange(18.0, dtype=torch.float64).sin().reshape(6, 3), 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(
    ("made", "targets"),
    [
        (partial(nn.CrossEntropyLoss, WEIGHT), SOFT),
        (partial(nn.MultiMarginLoss, weight=WEIGHT), torch.tensor([0, 1, 2, 2, 1, 0])),
        (partial(nn.MultiLabelSoftMarginLoss, WEIGHT), SOFT.round()),
        (partial(nn.BCEWithLogitsLoss, WEIGHT, pos_weight=WEIGHT), SOFT),
        (partial(nn.CrossEntropyLoss, label_smoothing=0.1), torch.tensor([0, 1, 2, 2, 1, 0])),
    ],
)
def test_a_mean_that_keeps_the_weights_is_taken(made, targets):
    model, (x, _) = classified()
    rows = DataInfInfluence(model, made()).loss_gradients(x, targets)
    each = made(reduction="none")
    exact = dense.gradients(
        model, lambda out, y: each(out, y).mean(), (x, targets), ["weight", "bias"]
    )
    torch.testing.assert_close(rows, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [CaptureEngine, FunctionalEngine])
def test_absolute_errors_keep_their_weights_or_are_refused(kind):
    """Premise: torch drops the weight of l1_loss where its calls are watched."""
    torch.manual_seed(4)
    model, weight = nn.Linear(4, 3).double(), torch.tensor([[1.0, 10.0, 100.0]]).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6, 3).double()

    def loss(reduction, weight=weight):
        return lambda out, y: F.l1_loss(
            out, y, weight=None if weight is None else weight.expand_as(out), reduction=reduction
        )

    def rows(loss):
        return kind(model, OutputLoss(loss), Blocks.from_model(model, "full")).rows((x, y))[""]

    names = ["weight", "bias"]
    exact = dense.gradients(model, lambda o, y: (weight * (o - y).abs()).sum(), (x, y), names)
    torch.testing.assert_close(rows(loss("sum")), exact, rtol=1e-12, atol=0)
    plain = dense.gradients(model, lambda o, y: (o - y).abs().mean(), (x, y), names)
    torch.testing.assert_close(rows(loss("mean", None)), plain, rtol=1e-12, atol=0)
    with pytest.raises(ObjectiveError, match="mean of l1_loss divides by the weights"):
        rows(loss("mean"))


def words(loss):
    """How a run's fingerprint tells of a loss."""
    return Inputs(DataInfInfluence(nn.Linear(2, 3), loss), [], None).describe().objective


def counted_by(weight):
    return lambda out, y: F.cross_entropy(out, y, weight, reduction="sum")


def smoothed(share):
    return lambda out, y, share=share: F.cross_entropy(out, y, label_smoothing=share)


def of_a_module(loss):
    def twice(out, y):
        return 2 * loss(out, y)

    return twice


def test_a_run_is_known_by_the_weights_of_its_loss():
    other = WEIGHT + torch.tensor([0.0, 0.0, 1e-12])
    made = [
        *(nn.CrossEntropyLoss(weight, reduction="sum") for weight in (None, WEIGHT, other)),
        *(partial(F.cross_entropy, weight=w, reduction="sum") for w in (None, WEIGHT, other)),
        *(partial(loss, reduction="sum") for loss in (F.cross_entropy, F.mse_loss)),
        *(partial(F.huber_loss, delta=delta) for delta in (1.0, 2.0)),
        *(Penalised(reduction) for reduction in ("sum", "none")),
        *(counted_by(weight) for weight in (None, WEIGHT, other)),
        *(smoothed(share) for share in (0.0, 0.1)),
        *(of_a_module(nn.HuberLoss(delta=delta)) for delta in (1.0, 2.0)),
    ]
    told = [words(loss) for loss in made]
    assert len(set(told)) == len(made)
    assert told == [words(loss) for loss in made]
    assert "weight" not in told[0]


def test_a_label_that_the_loss_ignores_is_told():
    model, (x, y) = classified()
    loss = nn.CrossEntropyLoss(ignore_index=2)
    with pytest.raises(NonFiniteError, match=r"sample 2 .* nan.*labels that the loss ignores"):
        DataInfInfluence(model, loss).fit([(x, y)])
