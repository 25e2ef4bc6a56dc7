"""How the texts of a job are read, task by task."""

from typing import Any

from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    Encoder,
    PairEncoder,
    TagEncoder,
    TranslationEncoder,
)
from pydvl_datainf.jobfile.schema import Job


def encoder_of(job: Job, tokenizer: Any, config: Any) -> Encoder:
    """How the samples of a job are read.

    Args:
        job: what is to be done.
        tokenizer: of the model.
        config: of the model.

    Returns:
        An encoder.

    Raises:
        SourceError: if the tokenizer does not say which characters a token stands for.
    """
    names, length = job.columns, job.max_length
    if job.task not in ("sequence-classification", "seq2seq-lm") and not tokenizer.is_fast:
        raise SourceError(
            f"{job.task} needs a fast tokenizer, which tells the place of each token in the text; "
            f"{type(tokenizer).__name__} does not."
        )
    if job.task == "causal-lm":
        if names.messages is not None:
            return ChatEncoder(tokenizer, length, names.messages)
        if names.text is not None:
            return AnswerEncoder(tokenizer, length, prompt=None, answer=names.text)
        prompt, answer = names.prompt or "prompt", names.answer or "answer"
        return AnswerEncoder(tokenizer, length, prompt, answer, chat=job.chat)
    if job.task == "preference":
        chosen, rejected = names.chosen or "chosen", names.rejected or "rejected"
        return PairEncoder(
            tokenizer, length, names.prompt or "prompt", chosen, rejected, chat=job.chat
        )
    if job.task == "seq2seq-lm":
        source, target = names.source or "source", names.target or "target"
        return TranslationEncoder(tokenizer, length, source, target)
    labels, count = _label_ids(config), config.num_labels
    if job.task == "token-classification":
        words, tags = names.words or "words", names.tags or "tags"
        return TagEncoder(tokenizer, length, labels, count, words, tags)
    problem = config.problem_type or ("regression" if count == 1 else "single_label_classification")
    return ClassEncoder(
        tokenizer,
        length,
        labels,
        count,
        problem,
        text=names.text or "text",
        text_pair=names.text_pair,
        label=names.label or "label",
    )


def _label_ids(config: Any) -> dict[str, int]:
    """The number of each name of an output, of which a configuration may hold either table."""
    named = {name: i for i, name in config.id2label.items()}
    numbered = config.label2id or {}
    if any(named.get(name, i) != i for name, i in numbered.items()):
        raise ModelError(
            f"The model's configuration contradicts itself: id2label is {config.id2label}, and "
            f"label2id {numbered}. Correct the one that is wrong in its config.json."
        )
    return named | numbered
