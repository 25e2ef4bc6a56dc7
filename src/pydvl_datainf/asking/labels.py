"""Questions to classifiers: a text, or a pair of texts, and its label."""

from typing import Any

import torch

from pydvl_datainf.asking.encoding import Asked
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import ClassEncoder
from pydvl_datainf.huggingface.records import Placed

SEVERAL = "multi_label_classification"


def predict_label(model: Any, encoder: ClassEncoder, question: Question, number: int) -> str:
    """The label that a model gives a text.

    Args:
        model: returns an object with `logits` of shape (1, classes).
        encoder: that of the training data.
        question: the text.
        number: of the question, for messages, from 1.

    Returns:
        The most probable label by its name, or its number where it has none; where a text has
        several labels, those that are more probable than not, with commas between them.

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
    return ", ".join(names.get(i, str(i)) for i in found)


def encode_label(encoder: ClassEncoder, question: Question, answer: str, number: int) -> Asked:
    """Tokenises a text with its label.

    Args:
        encoder: that of the training data.
        question: the text.
        answer: its label; where a text has several, with commas between them.
        number: of the question, for messages, from 1.

    Returns:
        The sample, of which no tokens count.
    """
    label: str | list[str] = answer
    if encoder.problem == SEVERAL:
        is_one = answer in encoder.label_ids  # which may have a comma in its name
        label = [answer] if is_one else [part.strip() for part in answer.split(",") if part.strip()]
    place, record = _placed(encoder, question, number)
    sample = encoder.encode((place, {**record, encoder.label: label}))
    return Asked(str(question.prompt), answer, sample)


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
