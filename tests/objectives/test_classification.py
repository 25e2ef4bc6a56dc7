"""SequenceClassification: the three problems of transformers' classifiers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import NonFiniteError, ObjectiveError, SequenceClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine

X, Y = torch.randn(4, 3), torch.randn(4, 2)
LABELS = torch.tensor([0, 1, 1, 0])


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
