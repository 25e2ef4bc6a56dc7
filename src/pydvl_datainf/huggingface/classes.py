"""Texts and words with labels, tokenised."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.encoder import Encoded, check_some_count
from pydvl_datainf.huggingface.record_values import column, like_one, text_column
from pydvl_datainf.huggingface.records import LabelName, Placed
from pydvl_datainf.huggingface.several_labels import write_labels
from pydvl_datainf.ignored import IGNORED


@dataclass(frozen=True, slots=True)
class ClassEncoder:
    """A text, or a pair of texts, and its label.

    Args:
        tokenizer: any.
        max_length: tokens at which a sample is cut.
        label_ids: for each name of a label its number; empty where labels are numbers.
        n_labels: outputs of the model.
        problem: as in `SequenceClassification`: with "regression" labels are numbers, with
            "multi_label_classification" lists of names or numbers of labels.
        text: column of the text.
        text_pair: column of the second text, if there is one.
        label: column of the label.
    """

    tokenizer: Any
    max_length: int
    label_ids: Mapping[str, int]
    n_labels: int
    problem: str = "single_label_classification"
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises the text.

        Args:
            placed: a record and its place.

        Returns:
            What the tokenizer gives, and the label's number.
        """
        return {**self.inputs(placed), "labels": self._label(placed)}

    def inputs(self, placed: Placed) -> Encoded:
        """Tokenises the text, whatever its label.

        Args:
            placed: a record and its place.

        Returns:
            What the tokenizer gives.

        Raises:
            SourceError: if the text has no tokens.
        """
        texts = [text_column(placed, self.text)]
        if self.text_pair is not None:
            texts.append(text_column(placed, self.text_pair))
        encoded: Encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        if not encoded["input_ids"]:
            raise SourceError(f"{placed[0]}: nothing is left of column '{self.text}' as tokens.")
        return encoded

    def _label(self, placed: Placed) -> int | float | list[float]:
        value = column(placed, self.label)
        if self.problem == "regression":
            return _number(value, self.label, placed)
        if self.problem == "multi_label_classification":
            if not isinstance(value, list):
                raise SourceError(
                    f"{placed[0]}: column '{self.label}' must be a list of labels, since the model "
                    "gives several."
                )
            ids = [label_id(label, self.label_ids, self.n_labels, placed) for label in value]
            twice = next((label for i, label in enumerate(value) if ids[i] in ids[:i]), None)
            if twice is not None:
                raise SourceError(
                    f"{placed[0]}: column '{self.label}' names label {twice!r} twice. It must be "
                    "the list of the labels that hold, not a zero or a one for each."
                )
            return [float(i in ids) for i in range(self.n_labels)]
        return label_id(value, self.label_ids, self.n_labels, placed)

    def shown(self, placed: Placed) -> dict[str, Any]:
        """Texts and label."""
        names = {"text": self.text, "text_pair": self.text_pair, "label": self.label}
        values = {name: column(placed, c) for name, c in names.items() if c is not None}
        label = values["label"]
        told = write_labels(label) if isinstance(label, list) else str(label)
        return values | {"label": told}


@dataclass(frozen=True, slots=True)
class TagEncoder:
    """Words, and a label for each; a word's first token carries it.

    Args:
        tokenizer: a fast one.
        max_length: tokens at which a sample is cut.
        label_ids: for each name of a label its number; empty where labels are numbers.
        n_labels: outputs of the model.
        words: column of the words, a list of texts.
        tags: column of their labels, a list of the same length.
    """

    tokenizer: Any
    max_length: int
    label_ids: Mapping[str, int]
    n_labels: int
    words: str = "words"
    tags: str = "tags"

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises the words.

        Args:
            placed: a record and its place.

        Returns:
            What the tokenizer gives, and a label for each token.

        Raises:
            SourceError: if words and labels are no lists of the same length.
        """
        words, tags = column(placed, self.words), column(placed, self.tags)
        are_lists = isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)
        if not are_lists or not all(isinstance(word, str) for word in words):
            raise SourceError(
                f"{placed[0]}: columns '{self.words}' and '{self.tags}' must be lists of the same "
                "length, the first of texts."
            )
        ids = [label_id(tag, self.label_ids, self.n_labels, placed) for tag in tags]
        encoded = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=self.max_length
        )
        labels, last = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == last else ids[word])
            last = word
        check_some_count(labels, self.max_length, placed)
        return {**encoded, "labels": labels}

    def shown(self, placed: Placed) -> dict[str, Any]:
        """Each word with its label."""
        pairs = zip(column(placed, self.words), column(placed, self.tags), strict=True)
        return {"text": " ".join(f"{word}/{tag}" for word, tag in pairs)}


def label_id(value: Any, ids: Mapping[str, int], n: int, placed: Placed) -> int:
    """The number of a label.

    Args:
        value: a name of `ids`, or a number (CSV holds it as text).
        ids: for each name its number; may be empty.
        n: outputs of the model.
        placed: the record, for messages.

    Returns:
        The number.

    Raises:
        SourceError: if the label is unknown or no output of the model.
    """
    # Names that are numbers, but not their own, leave no room for numbers of outputs.
    mixed = any(name.isdecimal() and int(name) != i for name, i in ids.items())
    if str(value) in ids and (isinstance(value, str) or not mixed):
        return ids[str(value)]
    try:
        number = -1 if mixed or isinstance(value, LabelName) else int(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool | float) or not 0 <= number < n:
        numbers = f"a number from 0 to {n - 1}"
        if any(name != f"LABEL_{i}" for name, i in ids.items()):  # which no one named
            raise SourceError(
                f"{placed[0]}: label {value!r} is none of {write_labels(ids)}"
                f"{'' if mixed else f', or {numbers}'}.{like_one(str(value), ids)} Correct it "
                "there, or the names of the model's outputs (labels: of a job)."
            )
        raise SourceError(
            f"{placed[0]}: label {value!r} must be {numbers}. Name the model's outputs, in their "
            "order, in the job: labels: [first, second, ...]."
        )
    return number


def _number(value: Any, name: str, placed: Placed) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SourceError(f"{placed[0]}: column '{name}' must be a finite number, got {value!r}.")
    return number
