"""Questions to classifiers: a text, or a pair of texts, and its label."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pydvl_datainf.asking.encoding import Asked
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import ClassEncoder
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.huggingface.several_labels import read_labels

SEVERAL = "multi_label_classification"


def predict_labels(
    model: Any, encoder: ClassEncoder, question: Question, number: int
) -> tuple[str, ...]:
    """The label that a model gives a text, or its labels.

    Args:
        model: returns an object with `logits` of shape (1, classes).
        encoder: that of the training data.
        question: the text.
        number: of the question, for messages, from 1.

    Returns:
        The most probable label by its name, or its number where it has none; where a text has
        several labels, those that are more probable than not.

    Raises:
        SourceError: if the model gives a number.
    """
    if encoder.problem == "regression":
        raise SourceError(
            f"{place_of(number)}: the model gives a number, and that number itself has no loss: "
            "nothing has an influence on it. Give the answer."
        )
    inputs = encoder.inputs(_placed(encoder, question, number))
    device = next(model.parameters()).device
    batch = {name: torch.tensor([values], device=device) for name, values in inputs.items()}
    with torch.no_grad():
        (logits,) = model(**batch).logits
    names = {i: name for name, i in list(encoder.label_ids.items())[::-1]}
    several = encoder.problem == SEVERAL
    found = (logits > 0).nonzero()[:, 0].tolist() if several else [int(logits.argmax())]
    return tuple(names.get(i, str(i)) for i in found)


def encode_label(
    encoder: ClassEncoder,
    question: Question,
    answer: str,
    number: int,
    labels: Sequence[str] | None = None,
) -> Asked:
    """Tokenises a text with its label.

    Args:
        encoder: that of the training data.
        question: the text.
        answer: its label; where a text has several, with commas between them, as `write_labels`
            writes them or without quotes.
        number: of the question, for messages, from 1.
        labels: those of the answer, where a model gave them; None = they are read from it.

    Returns:
        The sample, of which no tokens count.
    """
    label: str | list[str] = answer
    if encoder.problem == SEVERAL:
        told = _labels_in(answer, encoder.label_ids, number) if labels is None else labels
        label = list(told)
    place, record = _placed(encoder, question, number)
    sample = encoder.encode((place, {**record, encoder.label: label}))
    return Asked(str(question.prompt), answer, sample)


def _labels_in(answer: str, ids: Mapping[str, int], number: int) -> tuple[str, ...]:
    """The labels that a text names with commas between them, which names may hold themselves."""
    quoted = read_labels(answer) if '"' in answer else ()
    readings = _without_quotes(answer, ids)
    if quoted and all(name in ids or name.isdecimal() for name in quoted):
        named = [reading for reading in readings if all(name in ids for name in reading)]
        readings = list(dict.fromkeys([quoted, *named]))
    first, *others = readings
    if others:
        raise SourceError(
            f"{place_of(number)}: the answer {answer!r} names the labels "
            f"{' and '.join(map(repr, first))}, or {' and '.join(map(repr, others[0]))}, since "
            "names have commas, spaces or quotes. Give names in double quotes, those within them "
            "doubled, or the numbers of the labels, with commas between them."
        )
    return first


def _without_quotes(answer: str, ids: Mapping[str, int]) -> list[tuple[str, ...]]:
    """How a text without quotes around names can be read: one way, or two of more."""
    parts = answer.split(",")
    most = max((name.count(",") for name in ids), default=0) + 1
    # readings[i]: how what follows part i can be read, at most two ways, since two are too many
    readings: list[list[tuple[str, ...]]] = [[] for _ in parts] + [[()]]
    for i in reversed(range(len(parts))):
        ends = range(i + 1, min(i + most, len(parts)) + 1)
        known = [
            (name, *rest)
            for end in ends
            for name in _names_like(",".join(parts[i:end]), ids)
            for rest in readings[end]
        ]
        # a number, or no label, which is refused as such
        other = [
            (parts[i].strip(), *rest) if parts[i].strip() else rest for rest in readings[i + 1]
        ]
        named = [reading for reading in known if all(name in ids for name in reading)]
        readings[i] = (named or known or other)[:2]
    return readings[0]


def _names_like(text: str, ids: Mapping[str, int]) -> list[str]:
    """The names that a text is, behind a space or none; else those but for white space around."""
    exact = [name for name in dict.fromkeys((text, text.removeprefix(" "))) if name in ids]
    return exact or [name for name in ids if text.strip() and name.strip() == text.strip()]


def _placed(encoder: ClassEncoder, question: Question, number: int) -> Placed:
    """The text as a record of the training data, without its label."""
    place = place_of(number)
    if question.prompt is None:
        raise SourceError(
            f"{place}: it is a conversation, and the training data are texts with labels. Ask with "
            "a prompt."
        )
    if question.span is not None:
        raise SourceError(f"{place}: a label has no span. Leave it out.")
    if encoder.text_pair is None and question.text_pair is None:
        return place, {encoder.text: question.prompt}
    if encoder.text_pair is None or question.text_pair is None:
        raise SourceError(
            f"{place}: the training data are single texts. Leave 'text_pair' out."
            if encoder.text_pair is None
            else f"{place}: the training data are pairs of texts. Give the second one, 'text_pair'."
        )
    return place, {encoder.text: question.prompt, encoder.text_pair: question.text_pair}
