"""Questions to an encoder and a decoder: a source text and what the model makes of it."""

from collections.abc import Collection
from typing import Any

import torch

from pydvl_datainf.asking.encoding import Asked, no_part, none_counts, spans_of
from pydvl_datainf.asking.generation import check_generates, greedy
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import TranslationEncoder
from pydvl_datainf.huggingface.encoder import UnusableError
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.objectives import Seq2SeqLM
from pydvl_datainf.objectives.tokens import IGNORED


def generate_target(
    model: Any, encoder: TranslationEncoder, question: Question, number: int, max_new_tokens: int
) -> tuple[str, tuple[int, ...]]:
    """Lets a model answer: at each step it takes the token with the largest probability.

    Args:
        model: of transformers, with or without adapters, in evaluation mode.
        encoder: that of the training data.
        question: the source text.
        number: of the question, for messages, from 1.
        max_new_tokens: tokens at which the answer is cut.

    Returns:
        The answer, without special tokens, and the token by which it ended; none where it was cut.
    """
    check_generates(model)
    inputs = encoder.inputs(_placed(encoder, question, "", number))
    room = min(max_new_tokens, encoder.max_length)
    found = greedy(model, encoder.tokenizer, inputs, room)
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return str(encoder.tokenizer.decode(found.tokens, **settings)), found.ends


def encode_target(
    model: Any,
    encoder: TranslationEncoder,
    question: Question,
    answer: str,
    number: int,
    ends: Collection[int] | None = None,
) -> Asked:
    """Tokenises a source text and what it becomes.

    Args:
        model: tells what its decoder is given.
        encoder: that of the training data.
        question: the source text.
        answer: what it becomes.
        number: of the question, for messages, from 1.
        ends: tokens by which a model ended the answer: the tokenizer's end counts where it is among
            them; None = it counts, as it does in the training data.

    Returns:
        The sample, with the decoder's input: where only some tokens count, it cannot be told from
        the labels.

    Raises:
        SourceError: if its span is no part of the answer, or nothing of that is left within the
            length at which samples are cut.
    """
    placed = _placed(encoder, question, answer, number)
    try:
        sample = encoder.encode(placed)
    except UnusableError as error:
        raise SourceError(none_counts(placed[0], encoder.max_length)) from error
    target = labels = sample["labels"]
    if question.span is not None:
        labels = _narrowed(encoder, target, answer, question.span, placed)
    elif ends is not None:
        labels = _without_end(encoder, target, ends)
    # Public it would have another source, by which stored runs know their objective.
    given = Seq2SeqLM()._moved(model, torch.tensor([target]))[0].tolist()
    decoder = {"decoder_input_ids": given, "decoder_attention_mask": [1] * len(given)}
    counted = tuple(t for t, label in enumerate(labels) if label != IGNORED)
    if not counted:
        raise SourceError(none_counts(placed[0], encoder.max_length))
    tokens = tuple(encoder.tokenizer.decode([labels[t]]) for t in counted)
    whole = {**sample, **decoder, "labels": labels}
    return Asked(str(question.prompt), answer, whole, counted, tokens)


def _narrowed(
    encoder: TranslationEncoder, target: list[int], answer: str, span: str, placed: Placed
) -> list[int]:
    """Labels of the tokens that reach into a span, wherever it stands in the answer."""
    if not encoder.tokenizer.is_fast:
        raise SourceError(
            f"{placed[0]}: a span needs a fast tokenizer, which tells the place of each token in "
            f"the text; {type(encoder.tokenizer).__name__} does not."
        )
    spans = list(spans_of(span, answer))
    if not spans:
        raise SourceError(no_part(span, answer, placed[0]))
    told = encoder.tokenizer(
        text_target=answer,
        truncation=True,
        max_length=encoder.max_length,
        return_offsets_mapping=True,
    )
    return [
        token if any(stop > s and start < e and stop > start for s, e in spans) else IGNORED
        for token, (start, stop) in zip(target, told["offset_mapping"], strict=True)
    ]


def _without_end(
    encoder: TranslationEncoder, target: list[int], ends: Collection[int]
) -> list[int]:
    """Labels of the tokens up to the end that a tokenizer wrote, unless the model wrote one too."""
    special = encoder.tokenizer.get_special_tokens_mask(target, already_has_special_tokens=True)
    stop = max((t + 1 for t, is_special in enumerate(special) if not is_special), default=0)
    if set(ends) & set(target[stop:]):
        return target
    return [*target[:stop], *[IGNORED] * len(target[stop:])]


def _placed(encoder: TranslationEncoder, question: Question, answer: str, number: int) -> Placed:
    place = place_of(number)
    if question.prompt is None:
        raise SourceError(
            f"{place}: it is a conversation, and the training data are sources and targets. Ask "
            "with a prompt."
        )
    return place, {encoder.source: question.prompt, encoder.target: answer}
