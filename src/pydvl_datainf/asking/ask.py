"""Asks a finished run a question of one's own: which training samples an answer came from."""

from collections.abc import Sequence
from typing import Any

from zarr.storage import MemoryStore

from pydvl_datainf.asking.encoding import AnswersEncoder, Asked, encode_question
from pydvl_datainf.asking.generation import generate_answer
from pydvl_datainf.asking.questions import Question
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import TokenSamples
from pydvl_datainf.influence import BlockwiseInfluence
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import NORMALIZE
from pydvl_datainf.runner.run import run_influences
from pydvl_datainf.runner.train_side import StoredRows
from pydvl_datainf.runner.worker_inputs import Built

AT_ONCE = 64
"""Questions that are read, and sorted by length, together."""


def ask(
    run: InfluenceRun,
    influence: Built,
    questions: str | Question | Sequence[Question],
    *,
    encoder: AnswersEncoder,
    answer: str | None = None,
    span: str | None = None,
    by_token: bool = False,
    max_new_tokens: int = 256,
    store: Any = None,
    overwrite: bool = False,
    progress: bool = False,
) -> InfluenceRun:
    """Computes the influence of each training sample of a run on answers to questions.

    Args:
        run: complete, made with rows="zarr": the training data is not read again.
        influence: of the model of the run, with its objective, or a function that builds it.
        questions: a prompt, or one or several questions.
        encoder: that of the training data: its template and its length are used.
        answer: to a prompt; None = what the model says, greedily.
        span: the part of that answer that counts.
        by_token: ask about each token that counts by itself, in place of the answer. Where the
            objective adds the losses of tokens, these influences add up to that on the answer;
            where it takes their mean, their mean is that.
        max_new_tokens: tokens at which answers that are generated are cut.
        store: where the result goes; None = it is kept in memory.
        overwrite: replace a run in the store.
        progress: show bars.

    Returns:
        A run whose test samples are the questions, or the tokens of answers, with the columns
        `prompt`, `answer`, `origin` ("given" or "generated") and `counted`, the tokens that count.
        `top`, `scores`, tables and reports read it as they read any run.

    Raises:
        SourceError: if there is no question, one cannot be tokenised as the training data was, or
            its span is no part of the answer.
        StoreError: if the run keeps no training rows.

    Example:
        >>> found = ask(run, influence, "Who wrote it?", encoder=encoder)  # doctest: +SKIP
        >>> found.top(3, test=0)  # doctest: +SKIP
    """
    StoredRows(run.store, run.allow_other_places)  # refuses early a run that keeps none
    if isinstance(questions, str):
        questions = Question(questions, answer, span)
    elif answer is not None or span is not None:
        raise SourceError("'answer' and 'span' belong to a prompt; put them into the questions.")
    listed = [questions] if isinstance(questions, Question) else list(questions)
    if not listed:
        raise SourceError("There are no questions.")
    if not isinstance(influence, BlockwiseInfluence):
        influence = influence()
    model = influence.model
    asked = [
        _asked(model, encoder, question, number, max_new_tokens)
        for number, question in enumerate(listed, 1)
    ]
    named = list(zip(_ids(listed), listed, asked, strict=True))
    if by_token:
        named = [
            (f"{name}.{t}", question, part)
            for name, question, one in named
            for t, part in enumerate(one.by_token())
        ]
    columns = {
        "prompt": [one.prompt for _, _, one in named],
        "answer": [one.answer for _, _, one in named],
        "origin": ["generated" if q.known_answer is None else "given" for _, q, _ in named],
        "counted": ["".join(one.tokens) for _, _, one in named],
    }
    pad = encoder.tokenizer.pad_token_id or 0  # behind the mask any token will do
    samples = TokenSamples([one.sample for _, _, one in named], pad)
    return run_influences(
        influence,
        samples.to_loader(AT_ONCE),
        run,
        MemoryStore() if store is None else store,
        ids={"test": [name for name, _, _ in named]},
        metadata={"test": columns},
        overwrite=overwrite,
        progress=progress,
        normalize=run.attrs["fingerprint"].get(NORMALIZE),
    )


def _asked(
    model: Any, encoder: AnswersEncoder, question: Question, number: int, max_new_tokens: int
) -> Asked:
    """A question with its answer, which the model gives where there is none."""
    answer = question.known_answer
    if answer is None:
        answer = generate_answer(model, encoder, question, max_new_tokens)
    return encode_question(encoder, question, answer, number)


def _ids(questions: Sequence[Question]) -> list[str]:
    """Names of questions: their own, or their numbers from 0."""
    ids = [str(i) if q.id is None else q.id for i, q in enumerate(questions)]
    twice = next((name for i, name in enumerate(ids) if name in ids[:i]), None)
    if twice is not None:
        raise SourceError(f"Two questions have the id {twice!r}. Give each its own.")
    return ids
