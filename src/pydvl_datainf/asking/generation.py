"""What a tuned model answers, greedily."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pydvl_datainf.asking.encoding import AnswersEncoder
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.huggingface import ChatEncoder
from pydvl_datainf.huggingface.chat import template_refusals

OFF = (
    *("temperature", "top_p", "top_k"),  # of sampling
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("guidance_scale", "exponential_decay_length_penalty", "min_length", "min_new_tokens"),
    *("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "watermarking_config"),
    *("max_time", "stop_strings", "token_healing", "dola_layers", "max_length"),
)
"""What a model's own configuration may ask for: less probable tokens, or an early stop."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote.

    Attributes:
        tokens: the prompt's, or what a decoder begins with, and what follows.
        ends: the token by which the model ended it; none where it was cut.
    """

    tokens: Sequence[int]
    ends: tuple[int, ...]


def generate_answer(
    model: Any, encoder: AnswersEncoder, question: Question, number: int, max_new_tokens: int
) -> tuple[str, tuple[int, ...]]:
    """Lets a model answer: at each step it takes the token with the largest probability.

    Args:
        model: of transformers, with or without adapters, in evaluation mode.
        encoder: that of the training data, whose template is used.
        question: asked.
        number: of the question, for messages, from 1.
        max_new_tokens: tokens at which the answer is cut.

    Returns:
        The answer, without special tokens, and the token by which it ended; none where it was cut.

    Raises:
        SourceError: if the prompt leaves no room for an answer.
    """
    check_generates(model)
    tokenizer = encoder.tokenizer
    ids = prompt_ids(encoder, question, number)
    room = min(max_new_tokens, encoder.max_length - len(ids))
    if not ids or room < 1:
        raise SourceError(
            f"A prompt of {len(ids):,} tokens leaves no answer to generate within max_length="
            f"{encoder.max_length:,}. Give a shorter prompt, one that is not empty, or the answer."
        )
    found = greedy(model, tokenizer, {"input_ids": ids, "attention_mask": [1] * len(ids)}, room)
    # As one text: alone, some tokenizers lose the space before the first token.
    whole, before = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (found.tokens, ids)
    )
    if whole.startswith(before):
        return str(whole[len(before) :]), found.ends
    alone = tokenizer.decode(found.tokens[len(ids) :], skip_special_tokens=True)
    return str(alone), found.ends


def check_generates(model: Any) -> None:
    """Checks that a model generates text.

    Args:
        model: any.

    Raises:
        ModelError: if it does not.
    """
    if not hasattr(model, "generate"):
        raise ModelError(f"A {type(model).__name__} generates no text. Give the answer.")


def greedy(
    model: Any, tokenizer: Any, inputs: Mapping[str, Sequence[int]], max_new_tokens: int
) -> Generated:
    """Generates, at each step the token with the largest probability.

    Args:
        model: of transformers.
        tokenizer: of the model.
        inputs: of one sample, by name.
        max_new_tokens: at most.

    Returns:
        Token ids, until one by which texts end to the model or the tokenizer.
    """
    ends = _ends(model, tokenizer)
    device = next(model.parameters()).device
    batch = {name: torch.tensor([values], device=device) for name, values in inputs.items()}
    with torch.no_grad():
        (found,) = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=_padding(tokenizer),
            eos_token_id=ends or None,
            num_return_sequences=1,
            return_dict_in_generate=False,
            **dict.fromkeys(OFF),
        )
    ids: list[int] = found.tolist()
    return Generated(ids, tuple(token for token in ids[-1:] if token in ends))


def prompt_ids(encoder: AnswersEncoder, question: Question, number: int) -> list[int]:
    """Tokens of a prompt, as they stand before an answer in the training data.

    Args:
        encoder: that of the training data.
        question: with a prompt or a conversation.
        number: of the question, for messages, from 1.

    Returns:
        Token ids; none of a conversation that the answer begins.

    Raises:
        SourceError: if there is no chat template, in which to put it, or it does not take it.
    """
    tokenizer = encoder.tokenizer
    if isinstance(encoder, ChatEncoder) or encoder.chat:
        if tokenizer.chat_template is None:
            raise SourceError("The tokenizer has no chat template, in which to put the prompt.")
        if not question.conversation:  # which templates do not take
            return []
        with template_refusals((place_of(number), {})):
            text = tokenizer.apply_chat_template(
                question.conversation, tokenize=False, add_generation_prompt=True
            )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(question.prompt)["input_ids"])
    own = list(tokenizer(question.prompt, add_special_tokens=False)["input_ids"])
    ends = len(ids) > len(own) and ids[-1] == tokenizer.eos_token_id and ids[-1:] != own[-1:]
    return ids[:-1] if ends else ids


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens by which texts end, to a model or to its tokenizer: they need not agree."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = of_model if isinstance(of_model, list | tuple) else [of_model]
    return [
        token for token in dict.fromkeys((*several, tokenizer.eos_token_id)) if token is not None
    ]


def _padding(tokenizer: Any) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in known if token is not None))
