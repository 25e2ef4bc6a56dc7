"""From model and batch to one loss per sample."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import (
    DataInfInfluence,
    NonFiniteError,
    Objective,
    ObjectiveError,
    SequenceClassification,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.objectives import OutputLoss, as_objective, check_losses
from pydvl_datainf.runner.worker_inputs import Inputs

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


# Class weights. The mean of torch's losses over weighted classes divides by the weights it sees,
# so that of a batch of one the weight is gone.

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


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="none"), lambda out, y: 1.0, lambda out, y: out[..., :0]]
)
def test_a_loss_that_is_not_one_number_a_sample_is_refused(loss):
    with pytest.raises(ObjectiveError, match="one number for each sample"):
        OutputLoss(loss).losses(nn.Linear(3, 2), (X, Y))


def test_a_plain_loss_needs_pairs():
    with pytest.raises(ObjectiveError, match=r"SequenceClassification\(\)"):
        OutputLoss(F.mse_loss).losses(nn.Linear(3, 2), {"x": X, "labels": Y})


class Classifier(nn.Module):
    def __init__(self, dtype=torch.float32, outputs=2):
        super().__init__()
        self.inner = nn.Linear(3, outputs, dtype=dtype)

    def forward(self, x):
        return SimpleNamespace(logits=self.inner(x))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_sequence_classification(dtype, expected):
    model, x = Classifier(dtype), X.to(dtype)
    losses = SequenceClassification().losses(model, {"x": x, "labels": LABELS})
    logits = model.inner(x).to(expected)
    assert losses.dtype == expected
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, LABELS), r"an \(x, y\) pair"),
        ({"x": X}, r"the key 'labels', got \['x'\]"),
        ({"x": X, "labels": Y[:, 0]}, "must be integers"),
        ({"x": X, "labels": LABELS.unsqueeze(1)}, r"of shape \(4, 1\)"),
    ],
)
def test_sequence_classification_refuses_other_batches(batch, message):
    with pytest.raises(ObjectiveError, match=message):
        SequenceClassification().losses(Classifier(), batch)


def test_the_key_of_the_labels_may_be_chosen():
    model = Classifier()
    losses = SequenceClassification(labels="y").losses(model, {"x": X, "y": LABELS})
    assert losses.shape == (4,)


# The three problems of transformers' classifiers

MANY = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
NUMBERS = torch.tensor([0.3, -1.0, 2.0, 0.0]).double()
SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
PROBLEMS = {
    "classes": (3, None, torch.tensor([0, 2, 1, 1])),
    "several labels": (3, None, MANY.double()),
    "several labels, told": (3, MULTI, MANY.double()),
    "a number": (1, None, NUMBERS),
    "a number in a column": (1, None, NUMBERS.unsqueeze(1)),
    "a whole number": (1, None, LABELS),
    "numbers, told": (3, REGRESSION, MANY.double() - 0.3),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    """A classifier and a batch that its configuration, or its labels, tell how to compare."""
    torch.manual_seed(5)
    outputs, told, labels = PROBLEMS[request.param]
    model = tiny.bert(num_labels=outputs, problem_type=told).double().eval()
    return model, {**tiny.texts(4, 7), "labels": labels}


def loss_of_transformers(model, batch):
    return model(**batch).loss


def test_losses_are_those_of_transformers_for_each_sample(problem):
    model, batch = problem
    losses = SequenceClassification().losses(model, batch)
    exact = torch.stack(dense.sample_losses(model, loss_of_transformers, batch))
    torch.testing.assert_close(losses, exact, rtol=1e-9, atol=1e-12)
    assert losses.std() > 0


def test_rows_for_each_problem(problem):
    model, batch = problem
    blocks = Blocks.from_model(model, "module")
    rows = blocks.flatten(CaptureEngine(model, SequenceClassification(), blocks).rows(batch))
    exact = dense.gradients(model, loss_of_transformers, batch, tiny.names_of(model))
    tiny.assert_rows_close(rows, exact)


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_engines_map_each_problem(name):
    outputs, told, labels = PROBLEMS[name]
    model = Classifier(torch.float64, outputs)
    batch, objective = {"x": X.double(), "labels": labels}, SequenceClassification(problem=told)
    blocks = Blocks.from_model(model, "full")
    first, second = (
        kind(model, objective, blocks).rows(batch)[""] for kind in (CaptureEngine, FunctionalEngine)
    )
    tiny.assert_rows_close(first, second)


@pytest.mark.parametrize(("told", "asked"), [(MULTI, REGRESSION), (REGRESSION, MULTI)])
def test_what_is_asked_for_goes_before_the_configuration(told, asked):
    torch.manual_seed(5)
    model = tiny.bert(num_labels=3, problem_type=told).eval()
    batch = {**tiny.texts(4, 7), "labels": MANY}
    losses = SequenceClassification(problem=asked).losses(model, batch)
    model.config.problem_type = asked
    torch.testing.assert_close(losses, SequenceClassification().losses(model, batch))
    model.config.problem_type = told
    assert not torch.allclose(losses, SequenceClassification().losses(model, batch))


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool])
def test_several_labels_may_be_integers_when_asked_for(dtype):
    torch.manual_seed(5)
    model = tiny.bert(num_labels=3).eval()
    objective, inputs = SequenceClassification(problem=MULTI), tiny.texts(4, 7)
    losses, whole = (
        objective.losses(model, {**inputs, "labels": labels}) for labels in (MANY, MANY.to(dtype))
    )
    torch.testing.assert_close(whole, losses, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_classes_may_be_integers_of_any_width(dtype):
    model = Classifier()
    narrow = SequenceClassification().losses(model, {"x": X, "labels": LABELS.to(dtype)})
    wide = SequenceClassification().losses(model, {"x": X, "labels": LABELS})
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0)


@pytest.mark.parametrize(("problem", "labels"), [(MULTI, Y.round().clamp(0, 1)), (REGRESSION, Y)])
def test_half_precision_is_raised_for_each_problem(problem, labels):
    model = Classifier(torch.bfloat16)
    objective = SequenceClassification(problem=problem)
    losses = objective.losses(model, {"x": X.bfloat16(), "labels": labels})
    assert losses.dtype == torch.float32


@pytest.mark.parametrize(
    ("outputs", "told", "labels", "message"),
    [
        (3, None, MANY.long(), r"problem=\"multi_label_classification\" or \"regression\""),
        (3, None, NUMBERS, r"must be integers of shape \(B,\), got torch.float64"),
        (3, MULTI, MANY[:, :2], r"each of the 3 outputs .*\(4, 3\); got \(4, 2\)"),
        (3, MULTI, LABELS, r"each of the 3 outputs .*\(4, 3\); got \(4,\)"),
        (3, REGRESSION, NUMBERS, r"each of the 3 outputs .*\(4, 3\); got \(4,\)"),
        (1, REGRESSION, MANY, r"each of the 1 outputs .*\(4, 1\); got \(4, 3\)"),
        (3, "ranking", LABELS, r"problem must be one of .*got 'ranking'"),
    ],
)
def test_labels_that_do_not_fit_the_problem_are_refused(outputs, told, labels, message):
    model = tiny.bert(num_labels=outputs)
    model.config.problem_type = told
    with pytest.raises(ObjectiveError, match=message):
        SequenceClassification().losses(model, {**tiny.texts(4, 7), "labels": labels})


def test_there_is_no_other_problem():
    with pytest.raises(ObjectiveError, match=r"problem must be one of .*got 'ranking'"):
        SequenceClassification(problem="ranking")


def test_a_sample_without_a_class_is_named():
    model = Classifier()
    batch = {"x": X, "labels": torch.tensor([0, 1, -100, 0])}
    engine = CaptureEngine(model, SequenceClassification(), Blocks.from_model(model, "full"))
    with pytest.raises(NonFiniteError, match="loss of sample 2") as error:
        engine.rows(batch)
    assert error.value.sample == 2


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
