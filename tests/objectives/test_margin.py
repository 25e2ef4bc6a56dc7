"""Margins of test samples: their values and their rows, against plain autograd in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dense
import tiny
from pydvl_datainf import AnswerMargin, Margin, NonFiniteError, ObjectiveError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine

ENGINES = [CaptureEngine, FunctionalEngine]


def network(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Classifier(nn.Module):
    """As those of transformers: takes names, and returns an object with logits."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return SimpleNamespace(logits=self.inner(x))


def samples(length=7, classes=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (length,), generator=generator)


def minus_margin(z, y, against):
    """Of one sample, written down plainly."""
    others = torch.stack([z[c] for c in range(len(z)) if c != y])
    rest = {
        "best": others.max(),
        "all": others.exp().sum().log(),
        "none": torch.zeros((), dtype=z.dtype),
    }[against]
    return rest - z[y]


@pytest.mark.parametrize("against", ["best", "all", "none"])
@pytest.mark.parametrize(("length", "classes"), [(1, 4), (7, 4), (7, 2)])
def test_margins_of_pairs_and_mappings(against, length, classes):
    (x, y), model = samples(length, classes), network(classes)
    expected = torch.stack([minus_margin(model(a), b, against) for a, b in zip(x, y, strict=True)])
    bound = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(Margin(against).losses(model, (x, y)), expected, **bound)
    named = Classifier()
    named.inner = model
    given = Margin(against, labels="y").losses(named, {"x": x, "y": y})
    torch.testing.assert_close(given, expected, **bound)


def test_of_two_classes_all_margins_against_others_are_the_same():
    model, data = network(2), samples(classes=2)
    best, every, alone = (Margin(a).losses(model, data) for a in ("best", "all", "none"))
    torch.testing.assert_close(best, every)
    assert not torch.allclose(best, alone)


def test_against_all_is_minus_the_log_odds():
    model, (x, y) = network(), samples()
    p = model(x).softmax(1)[range(7), y]
    torch.testing.assert_close(Margin("all").losses(model, (x, y)), -(p / (1 - p)).log())


@pytest.mark.parametrize("against", ["best", "all", "none"])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_those_of_one_backward_pass_a_sample(engine, against):
    model, data = network(), samples()
    blocks = Blocks.from_model(model, "module")
    rows = blocks.flatten(engine(model, Margin(against), blocks).rows(data))
    names = [name for name, _ in model.named_parameters()]
    exact = dense.gradients(model, lambda z, y: minus_margin(z[0], y[0], against), data, names)
    tiny.assert_rows_close(rows, exact)


@pytest.mark.parametrize("label", [-100, 4, -1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_label_that_is_no_class_names_its_sample(engine, label):
    model, (x, y) = network(), samples()
    y[2] = label
    with pytest.raises(NonFiniteError, match="loss of sample 2 of a batch is nan"):
        engine(model, Margin(), Blocks.from_model(model, "module")).rows((x, y))


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (network(1), samples(), r"of two classes or more, got \(7, 1\)"),
        (nn.Flatten(0), samples(), r"logits of shape \(B, classes\).*got \(21,\)"),
        (Classifier(), samples(), "got SimpleNamespace"),
        (network(), {"input": samples()[0], "labels": samples()[1]}, r"got Tensor"),
        (network(), (samples()[0], torch.zeros(7)), "integers of shape .7,., got torch.float32"),
        (network(), (samples()[0], torch.zeros(7, 1, dtype=int)), r"of shape \(7, 1\)"),
        (network(), {"input": samples()[0]}, "the key 'labels'"),
    ],
)
def test_what_has_no_margin_is_refused(model, batch, message):
    with pytest.raises(ObjectiveError, match=message):
        Margin().losses(model, batch)


def test_an_unknown_margin_is_refused():
    with pytest.raises(ObjectiveError, match=r"against must be one of .*got 'worst'"):
        Margin("worst")


def test_half_precision_logits_are_raised():
    model, (x, y) = network().bfloat16(), samples()
    losses = Margin().losses(model, (x.bfloat16(), y))
    assert losses.dtype == torch.float32


# Answers of language models


def pairs(length=3, positions=7):
    sides = {side: tiny.answers(length, positions) for side in ("chosen", "rejected")}
    return {f"{side}_{k}": v for side, batch in sides.items() for k, v in batch.items()}


def answer_margin(model, batch):
    """log π(y₋|x) − log π(y₊|x) of one pair."""
    found = {}
    for side in ("chosen", "rejected"):
        one = {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(side)}
        counted = int((one["labels"] != -100).sum())
        found[side] = -counted * tiny.answer_loss(model, one)
    return found["rejected"] - found["chosen"]


@pytest.mark.parametrize("engine", [CaptureEngine])
def test_the_margin_between_two_answers(engine):
    torch.manual_seed(0)
    model = tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval()
    batch = pairs()
    blocks = Blocks.from_model(model, "module")
    losses = AnswerMargin().losses(model, batch)
    expected = torch.stack(dense.sample_losses(model, answer_margin, batch))
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    rows = blocks.flatten(engine(model, AnswerMargin(), blocks).rows(batch))
    names = [name for names in blocks.members.values() for name in names]
    exact = dense.gradients(model, answer_margin, batch, names)
    tiny.assert_rows_close(rows, exact)


def test_a_batch_without_answers_is_refused():
    with pytest.raises(ObjectiveError, match=r"The chosen answers of the pairs.*'labels'"):
        AnswerMargin().losses(network(), samples())
