"""Prompts and answers, tokenised; the loss sees only what is to be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.chat import answers_in
from pydvl_datainf.huggingface.encoder import Encoded, Encoder, check_some_count
from pydvl_datainf.huggingface.record_values import column, text_column
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.ignored import IGNORED


@dataclass(frozen=True, slots=True)
class Written:
    """A sample written out, before it is tokenised.

    Attributes:
        text: all of it.
        spans: from which to which character it counts.
        is_template: whether a template wrote it, with all special tokens; a tokenizer adds its own
            otherwise.
        end: tokens behind it, unless it ends with them.
        end_counts: whether the end of the text counts, as token behind it or the tokenizer's own.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    is_template: bool
    end: tuple[int, ...] = ()
    end_counts: bool = True


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
        return tokenised(self.tokenizer, self.written(placed), self.max_length, placed)

    def written(self, placed: Placed) -> Written:
        """Prompt and answer as one text.

        Args:
            placed: a record and its place.

        Returns:
            The text, of which the answer counts.
        """
        answer = text_column(placed, self.answer)
        prompt = "" if self.prompt is None else text_column(placed, self.prompt)
        if self.chat:
            messages = [_message("user", prompt), _message("assistant", answer)]
            return Written(*answers_in(self.tokenizer, messages, placed), is_template=True)
        text, eos = prompt + answer, self.tokenizer.eos_token_id
        end = () if eos is None else (eos,)
        return Written(text, [(len(prompt), len(text))], is_template=False, end=end)

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
        return tokenised(self.tokenizer, self.written(placed), self.max_length, placed)

    def written(self, placed: Placed) -> Written:
        """The conversation in the template.

        Args:
            placed: a record and its place.

        Returns:
            The text, of which the answers count.
        """
        found = answers_in(self.tokenizer, self._messages(placed), placed)
        return Written(*found, is_template=True)

    def shown(self, placed: Placed) -> dict[str, Any]:
        """The conversation as text."""
        messages = self._messages(placed)
        return {"messages": "\n".join(f"{m['role']}: {m['content']}" for m in messages)}

    def _messages(self, placed: Placed) -> Sequence[Mapping[str, Any]]:
        messages: Any = column(placed, self.messages)
        good = isinstance(messages, list) and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        )
        if not good or not any(m["role"] == "assistant" for m in messages):
            raise SourceError(
                f"{placed[0]}: column '{self.messages}' must be a list of messages with role and "
                "content, both texts, at least one of them from the assistant."
            )
        return [dict(m) for m in messages]


@dataclass(frozen=True, slots=True)
class PairEncoder:
    """A prompt with a chosen and a rejected answer, or two conversations.

    Args:
        tokenizer: a fast one.
        max_length: tokens at which either text is cut.
        prompt: column of the prompt; does not matter where answers are conversations.
        chosen: column of the chosen answer, or of a conversation that ends with it.
        rejected: column of the rejected answer.
        chat: whether prompt and answers are put into the tokenizer's chat template.
    """

    tokenizer: Any
    max_length: int
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    chat: bool = False

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises both answers, each after the prompt.

        Args:
            placed: a record and its place.

        Returns:
            Token ids, masks and labels of both, with no reference yet: log-probabilities of 0.
        """
        sample: dict[str, Any] = {}
        for side, encoder in self._encoders(placed).items():
            encoded = encoder.encode(placed)
            sample |= {f"{side}_{name}": values for name, values in encoded.items()}
        return sample | {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}

    def shown(self, placed: Placed) -> dict[str, Any]:
        """The prompt and both answers, or both conversations."""
        told: dict[str, Any] = {}
        for side, encoder in self._encoders(placed).items():
            texts = encoder.shown(placed)
            told[side] = texts.pop("messages", None) or texts.pop("answer")
            told |= texts
        return told

    def _encoders(self, placed: Placed) -> dict[str, Encoder]:
        columns = {"chosen": self.chosen, "rejected": self.rejected}
        if isinstance(column(placed, self.chosen), list):
            return {
                side: ChatEncoder(self.tokenizer, self.max_length, name)
                for side, name in columns.items()
            }
        return {
            side: AnswerEncoder(self.tokenizer, self.max_length, self.prompt, name, self.chat)
            for side, name in columns.items()
        }


@dataclass(frozen=True, slots=True)
class TranslationEncoder:
    """A source text and what it becomes, for an encoder and a decoder.

    Args:
        tokenizer: any.
        max_length: tokens at which either text is cut.
        source: column of the text that is read.
        target: column of the text that is written.
    """

    tokenizer: Any
    max_length: int
    source: str = "source"
    target: str = "target"

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises both texts.

        Args:
            placed: a record and its place.

        Returns:
            What the tokenizer gives of the source, and the target's token ids as labels.
        """
        text = text_column(placed, self.target)
        target = self.tokenizer(text_target=text, truncation=True, max_length=self.max_length)
        check_some_count(target["input_ids"], self.max_length, placed)
        return {**self.inputs(placed), "labels": target["input_ids"]}

    def inputs(self, placed: Placed) -> Encoded:
        """Tokenises the source text, whatever it becomes.

        Args:
            placed: a record and its place.

        Returns:
            What the tokenizer gives.
        """
        text = text_column(placed, self.source)
        encoded: Encoded = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return encoded

    def shown(self, placed: Placed) -> dict[str, Any]:
        """Both texts."""
        return {"source": column(placed, self.source), "target": column(placed, self.target)}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tokenised(tokenizer: Any, written: Written, max_length: int, placed: Placed) -> Encoded:
    """Tokens of a text; those that reach into one of the spans of characters carry a label.

    Args:
        tokenizer: a fast one.
        written: the text.
        max_length: tokens at which it is cut.
        placed: the record, for messages.

    Returns:
        Token ids, mask and labels.
    """
    special = not written.is_template
    encoded = tokenizer(written.text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    end = [token for token in written.end if not (ids and ids[-1] == token)]
    labels = [  # of the tokens that stay: there may be millions more
        token if any(stop > s and start < e and stop > start for s, e in written.spans) else IGNORED
        for token, (start, stop) in zip(ids[:max_length], offsets[:max_length], strict=True)
    ]
    has_own_end = special and ids and not end and ids[-1] == tokenizer.eos_token_id
    if has_own_end and len(ids) <= max_length and written.end_counts:
        labels[-1] = ids[-1]
    labels = [*labels, *(end if written.end_counts else [IGNORED] * len(end))][:max_length]
    ids = [*ids, *end][:max_length]
    check_some_count(labels[1:], max_length, placed)  # nothing predicts the first token
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
