"""Questions to classifiers: the label that a model gives, and texts with labels as samples."""

from types import SimpleNamespace

import pytest
import torch

from pydvl_datainf.asking import Question
from pydvl_datainf.asking.answering import answer_question, encode_answered
from pydvl_datainf.asking.labels import encode_label, predict_labels
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import ClassEncoder
from pydvl_datainf.huggingface.several_labels import read_labels
from tuned import tokenizer

WORDS = tokenizer()
NAMES = {"bad": 0, "good": 1, "so, so": 2}
SEVERAL = "multi_label_classification"


def encoder(problem="single_label_classification", names=NAMES, **settings):
    return ClassEncoder(WORDS, 32, names, 3, problem, **settings)


class Says(torch.nn.Module):
    """A model with these logits, which keeps what it was given."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([logits]))

    def forward(self, **inputs):
        self.seen = inputs
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize(
    ("made", "logits", "labels"),
    [
        (encoder(), (0.0, 3.0, 1.0), ("good",)),
        (encoder(), (-3.0, -2.0, -1.0), ("so, so",)),
        (encoder(names={}), (0.0, 3.0, 1.0), ("1",)),
        (encoder(SEVERAL), (1.0, 3.0, -1.0), ("bad", "good")),
        (encoder(SEVERAL), (-1.0, -3.0, -1.0), ()),
    ],
)
def test_the_label_that_a_model_gives(made, logits, labels):
    model = Says(*logits)
    question = Question("It is 2")
    assert predict_labels(model, made, question, 1) == labels
    assert model.seen["input_ids"].tolist() == [WORDS("It is 2")["input_ids"]]
    answered = answer_question(model, made, question, 1, 9)
    asked = encode_label(made, question, answered.answer, 1)
    assert asked.answer == ", ".join(labels)
    assert list(asked.by_token()) == []


@pytest.mark.parametrize(
    ("names", "logits", "labels"),
    [
        (("a", "b", "a, b"), (1.0, 2.0, -1.0), [1.0, 1.0, 0.0]),
        (("a", "b", "a, b"), (-1.0, -2.0, 1.0), [0.0, 0.0, 1.0]),
        (("a", "b", "a, b"), (1.0, -2.0, 1.0), [1.0, 0.0, 1.0]),
        (('"a", "b"', "a", "b"), (1.0, -2.0, -1.0), [1.0, 0.0, 0.0]),
        (("rock, pop", "c ", ","), (1.0, 2.0, 1.0), [1.0, 1.0, 1.0]),
        (("2", "0", "1"), (1.0, -2.0, 1.0), [1.0, 0.0, 1.0]),
    ],
)
def test_labels_that_a_model_gives_are_those_that_count(names, logits, labels):
    made = encoder(SEVERAL, {name: i for i, name in enumerate(names)})
    answered = answer_question(Says(*logits), made, Question("It is 2"), 1, 9)
    assert encode_answered(None, made, answered, 1).sample["labels"] == labels
    told = [names[i] for i, label in enumerate(labels) if label]
    assert list(read_labels(answered.answer)) == told


@pytest.mark.parametrize(
    ("made", "answer", "labels"),
    [
        (encoder(), "good", 1),
        (encoder(), "2", 2),
        (encoder("regression"), "-0.5", -0.5),
        (encoder(SEVERAL), "good,bad", [1.0, 1.0, 0.0]),
        (encoder(SEVERAL), "so, so", [0.0, 0.0, 1.0]),
        (encoder(SEVERAL), "", [0.0, 0.0, 0.0]),
    ],
)
def test_a_text_with_its_label_is_a_sample(made, answer, labels):
    assert encode_label(made, Question("It is 2"), answer, 1).sample["labels"] == labels


@pytest.mark.parametrize(
    ("names", "answer", "labels"),
    [
        (("rock, pop", "b", "c "), "rock, pop, b", [1.0, 1.0, 0.0]),
        (("rock, pop", "b", "c "), "c , rock, pop", [1.0, 0.0, 1.0]),
        (("rock, pop", "b", "c "), "c,b", [0.0, 1.0, 1.0]),
        (("rock, pop", "b", "c "), "c ", [0.0, 0.0, 1.0]),
        (("c", "c "), "c , c", [1.0, 1.0, 0.0]),
        (("rock, pop", "b", "c "), "1, rock, pop", [1.0, 1.0, 0.0]),
        (("a", "a, b", "b, c"), "a, b, c", [1.0, 0.0, 1.0]),
        (("a", "b", "a, b"), "b, a", [1.0, 1.0, 0.0]),
        (("a", "b", "a, b"), "0, 1", [1.0, 1.0, 0.0]),
        (("a", "b", "a, b"), "2", [0.0, 0.0, 1.0]),
        (("a", "b", "a, b"), '"a, b"', [0.0, 0.0, 1.0]),
        (("a", "b", "a, b"), '"a", "b"', [1.0, 1.0, 0.0]),
        (("a", "b", "a, b"), '"a, b",1', [0.0, 1.0, 1.0]),
        (("c", " c", "c "), '" c","c"', [1.0, 1.0, 0.0]),
        (('"a"', "b", 'say "c"'), '"a", say "c"', [1.0, 0.0, 1.0]),
        (('"a"', "b", 'say "c"'), '"say ""c""", """a"""', [1.0, 0.0, 1.0]),
    ],
)
def test_names_with_commas_and_spaces_are_found(names, answer, labels):
    made = encoder(SEVERAL, {name: i for i, name in enumerate(names)})
    assert encode_label(made, Question("It is 2"), answer, 1).sample["labels"] == labels


@pytest.mark.parametrize(
    ("names", "answer", "message"),
    [
        (("a", "b", "a, b"), "a, b", "'a, b' names the labels 'a' and 'b', or 'a, b', since"),
        (
            ("c", " c", "c "),
            " c  ",
            "the labels 'c', or ' c', since .*or the numbers of the labels",
        ),
        (("c", " c"), "1, c", "the labels '1' and ' c', or '1' and 'c'"),
        (("a", '"a"', "b"), '"a"', """the labels 'a', or '"a"', since .* in double quotes"""),
        (("rock, pop", "b", "c "), "rock, pop, d", "label 'd' is none of"),
    ],
)
def test_what_could_be_other_labels_is_refused(names, answer, message):
    made = encoder(SEVERAL, {name: i for i, name in enumerate(names)})
    with pytest.raises(SourceError, match=message):
        encode_label(made, Question("It is 2"), answer, 1)


def test_pairs_are_read_as_pairs():
    pairs = encoder(text="a", text_pair="b", label="c")
    sample = encode_label(pairs, Question("It is", text_pair="2"), "bad", 1).sample
    assert sample == {**WORDS("It is", "2"), "labels": 0}


@pytest.mark.parametrize(
    ("made", "question", "answer", "message"),
    [
        (encoder(), Question("a"), "fair", "questions, question 4: label 'fair' is none of"),
        (encoder(), Question("a", span="b"), "bad", "question 4: a label has no span"),
        (
            encoder(),
            Question(messages=[{"role": "user", "content": "a"}]),
            "bad",
            "question 4: it is a conversation",
        ),
        (
            encoder(),
            Question("a", text_pair="b"),
            "bad",
            "question 4: the training data are single",
        ),
        (encoder(text_pair="b"), Question("a"), "bad", "question 4: the training data are pairs"),
        (encoder("regression"), Question("a"), "bad", "'label' must be a finite number"),
        (encoder(SEVERAL), Question("a"), "bad, bad", "names label 'bad' twice"),
    ],
)
def test_what_is_no_text_with_a_label_is_refused(made, question, answer, message):
    with pytest.raises(SourceError, match=message):
        encode_label(made, question, answer, 4)


def test_a_number_of_the_models_own_has_no_loss():
    with pytest.raises(SourceError, match=r"question 1: the model gives a number.*Give the answer"):
        predict_labels(Says(0.0, 0.0, 0.0), encoder("regression"), Question("a"), 1)
