"""What a tuned model answers, greedily."""

from typing import Any

import torch

from pydvl_datainf.asking.encoding import AnswersEncoder
from pydvl_datainf.asking.questions import Question
from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.huggingface import ChatEncoder

OFF = (
    *("temperature", "top_p", "top_k"),  # of sampling
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("guidance_scale", "exponential_decay_length_penalty", "min_length", "min_new_tokens"),
)
"""What a model's own configuration may ask for, after which it takes less probable tokens."""


def generate_answer(
    model: Any, encoder: AnswersEncoder, question: Question, max_new_tokens: int
) -> str:
    """Lets a model answer: at each step it takes the token with the largest probability.

    Args:
        model: of transformers, with or without adapters, in evaluation mode.
        encoder: that of the training data, whose template is used.
        question: asked.
        max_new_tokens: tokens at which the answer is cut.

    Returns:
        The answer, without special tokens.

    Raises:
        ModelError: if the model generates no text.
        SourceError: if the prompt leaves no room for an answer.
    """
    if not hasattr(model, "generate"):
        raise ModelError(f"A {type(model).__name__} generates no text. Give the answer.")
    tokenizer = encoder.tokenizer
    ids = _prompt_ids(encoder, question)
    room = min(max_new_tokens, encoder.max_length - len(ids))
    if not ids or room < 1:
        raise SourceError(
            f"A prompt of {len(ids):,} tokens leaves no answer to generate within max_length="
            f"{encoder.max_length:,}. Give a shorter prompt, one that is not empty, or the answer."
        )
    asked = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.no_grad():
        (found,) = model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=room,
            do_sample=False,
            num_beams=1,
            pad_token_id=_padding(tokenizer),
            num_return_sequences=1,
            return_dict_in_generate=False,
            **dict.fromkeys(OFF),
        )
    # As one text: alone, some tokenizers lose the space before the first token.
    whole, before = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (found, ids)
    )
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(found[len(ids) :], skip_special_tokens=True))


def _prompt_ids(encoder: AnswersEncoder, question: Question) -> list[int]:
    """Tokens of the prompt, as they stand before an answer in the training data."""
    tokenizer = encoder.tokenizer
    if isinstance(encoder, ChatEncoder) or encoder.chat:
        if tokenizer.chat_template is None:
            raise SourceError("The tokenizer has no chat template, in which to put the prompt.")
        text = tokenizer.apply_chat_template(
            question.conversation, tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(question.prompt)["input_ids"])
    own = list(tokenizer(question.prompt, add_special_tokens=False)["input_ids"])
    ends = len(ids) > len(own) and ids[-1] == tokenizer.eos_token_id and ids[-1:] != own[-1:]
    return ids[:-1] if ends else ids


def _padding(tokenizer: Any) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in known if token is not None))
