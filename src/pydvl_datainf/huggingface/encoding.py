"""From records to tokens and labels: how each task reads a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.records import Placed, column, text_column
from pydvl_datainf.huggingface.tokens import Encoded
from pydvl_datainf.objectives.tokens import IGNORED


class Encoder(Protocol):
    """What turns a record into one tokenised sample."""

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises a record; an error names its place."""
        ...

    def shown(self, placed: Placed) -> dict[str, Any]:
        """What is stored of a record beside its scores: texts and labels, by column name."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerEncoder:
    """A prompt and the answer to it; only the answer's tokens count.

    Args:
        tokenizer: a fast one.
        max_length: tokens at which a sample is cut.
        prompt: column of the prompt; None = the whole text is an answer.
        answer: column of the answer.
        chat: whether prompt and answer are put into the tokenizer's chat template; otherwise the
            answer follows the prompt as it is, and an end-of-text token follows the answer.
    """

    tokenizer: Any
    max_length: int
    prompt: str | None = "prompt"
    answer: str = "answer"
    chat: bool = False

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises prompt and answer as one text.

        Args:
            placed: a record and its place.

        Returns:
            Token ids, mask and labels.
        """
        answer = text_column(placed, self.answer)
        prompt = "" if self.prompt is None else text_column(placed, self.prompt)
        if self.chat:
            messages = [_message("user", prompt), _message("assistant", answer)]
            return chat_sample(self.tokenizer, messages, self.max_length, placed)
        eos = self.tokenizer.eos_token_id
        return _sample(
            self.tokenizer,
            prompt + answer,
            [(len(prompt), len(prompt + answer))],
            self.max_length,
            placed,
            special=True,
            end=[] if eos is None else [eos],
        )

    def shown(self, placed: Placed) -> dict[str, Any]:
        """Prompt and answer."""
        names = {"prompt": self.prompt, "answer": self.answer}
        if self.prompt is None:
            names = {"text": self.answer}
        return {name: column(placed, c) for name, c in names.items() if c is not None}


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """A conversation in the tokenizer's chat template; only what the assistant says counts.

    Args:
        tokenizer: a fast one with a chat template.
        max_length: tokens at which a sample is cut.
        messages: column of the messages, a list of mappings with role and content.
    """

    tokenizer: Any
    max_length: int
    messages: str = "messages"

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises a conversation.

        Args:
            placed: a record and its place.

        Returns:
            Token ids, mask and labels.
        """
        return chat_sample(self.tokenizer, self._messages(placed), self.max_length, placed)

    def shown(self, placed: Placed) -> dict[str, Any]:
        """The conversation as text."""
        messages = self._messages(placed)
        return {"messages": "\n".join(f"{m['role']}: {m['content']}" for m in messages)}

    def _messages(self, placed: Placed) -> Sequence[Mapping[str, Any]]:
        messages: Any = column(placed, self.messages)
        good = isinstance(messages, list) and all(
            isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
        )
        if not good or not any(m["role"] == "assistant" for m in messages):
            raise SourceError(
                f"{placed[0]}: column '{self.messages}' must be a list of messages with role and "
                "content, at least one of them from the assistant."
            )
        return [dict(m) for m in messages]


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
        texts = [text_column(placed, self.text)]
        if self.text_pair is not None:
            texts.append(text_column(placed, self.text_pair))
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return {**encoded, "labels": self._label(placed)}

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
            ids = {label_id(label, self.label_ids, self.n_labels, placed) for label in value}
            return [float(i in ids) for i in range(self.n_labels)]
        return label_id(value, self.label_ids, self.n_labels, placed)

    def shown(self, placed: Placed) -> dict[str, Any]:
        """Texts and label."""
        names = {"text": self.text, "text_pair": self.text_pair, "label": self.label}
        values = {name: column(placed, c) for name, c in names.items() if c is not None}
        label = values["label"]
        told = ", ".join(map(str, label)) if isinstance(label, list) else str(label)
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
        if not (isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)):
            raise SourceError(
                f"{placed[0]}: columns '{self.words}' and '{self.tags}' must be lists of the same "
                "length."
            )
        ids = [label_id(tag, self.label_ids, self.n_labels, placed) for tag in tags]
        encoded = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=self.max_length
        )
        labels, last = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == last else ids[word])
            last = word
        _check_some(labels, self.max_length, placed)
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
    if str(value) in ids:
        return ids[str(value)]
    named = f", or one of {', '.join(ids)}" if ids else ""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool | float) or not 0 <= number < n:
        raise SourceError(
            f"{placed[0]}: label {value!r} must be a number from 0 to {n - 1}{named}. The names of "
            "labels are given in the order of the model's outputs."
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


def chat_sample(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], max_length: int, placed: Placed
) -> Encoded:
    """Tokenises a conversation; what the assistant says, with the end of its turns, counts.

    Args:
        tokenizer: a fast one with a chat template.
        messages: mappings with role and content.
        max_length: tokens at which it is cut.
        placed: the record, for messages.

    Returns:
        Token ids, mask and labels.

    Raises:
        SourceError: if there is no template, or it writes the same turns differently once others
            follow, so that they cannot be told apart.
    """
    if tokenizer.chat_template is None:
        raise SourceError("The tokenizer has no chat template; write prompts out as plain text.")

    def written(count: int, prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages[:count], tokenize=False, add_generation_prompt=prompt
            )
        )

    text = written(len(messages), prompt=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = written(i, prompt=True), written(i + 1, prompt=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise SourceError(
                f"{placed[0]}: the chat template writes turn {i} differently once it is followed "
                "by others, so answers cannot be told from prompts. Write the texts out in a "
                "prompt and an answer column."
            )
        spans.append((len(before), len(after)))
    return _sample(tokenizer, text, spans, max_length, placed, special=False)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _sample(
    tokenizer: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    max_length: int,
    placed: Placed,
    *,
    special: bool,
    end: Sequence[int] = (),
) -> Encoded:
    """Tokens of a text; those that reach into one of the spans of characters carry a label."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    end = [token for token in end if not (ids and ids[-1] == token)]
    labels = [
        token if any(stop > s and start < e and stop > start for s, e in spans) else IGNORED
        for token, (start, stop) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    ids, labels = [*ids, *end][:max_length], [*labels, *end][:max_length]
    _check_some(labels[1:], max_length, placed)  # nothing predicts the first token
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _check_some(labels: Sequence[int], max_length: int, placed: Placed) -> None:
    if all(label == IGNORED for label in labels):
        raise SourceError(
            f"{placed[0]}: no token has a label within max_length={max_length}, so the sample has "
            "no loss. Raise max_length, shorten the prompt, or leave the sample out."
        )
