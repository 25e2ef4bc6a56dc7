"""Questions to the run of a job: its model, tokenised as its training data was."""

from collections.abc import Sequence
from typing import Any

from pydvl_datainf.asking import Question, ask
from pydvl_datainf.asking.answering import QuestionEncoder
from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder, InfluenceBuilder
from pydvl_datainf.jobfile.origin import Origin
from pydvl_datainf.jobfile.paths import absent_folders_named
from pydvl_datainf.jobfile.preparation import builder_of
from pydvl_datainf.jobfile.texts import encoder_of, files_of, objective_of
from pydvl_datainf.objectives import CausalLM, Objective
from pydvl_datainf.results.reader import InfluenceRun

TASKS = ("causal-lm", "preference", "seq2seq-lm", "sequence-classification")
"""Whose models answer."""


def ask_job(
    run: InfluenceRun, origins: Sequence[Origin], questions: Sequence[Question], **settings: Any
) -> InfluenceRun:
    """Asks the run of a job.

    Of a preference, which has no loss of a single answer, −log π(answer | prompt) is asked, the sum
    over the tokens that count. A sum of checkpoints is asked one by one.

    Args:
        run: complete, with its training rows; or a sum of such runs.
        origins: its job; of a sum the job of each part.
        questions: asked.
        settings: as `ask` takes them.

    Returns:
        A run whose test samples are the questions.
    """
    asked = [_asked_by(run, origin) for origin in origins]
    encoders, builders = zip(*asked, strict=True)
    return ask(run, builders, questions, encoder=encoders, **settings)


def _asked_by(run: InfluenceRun, origin: Origin) -> tuple[QuestionEncoder, InfluenceBuilder]:
    """What reads the questions as the training data was read, and what builds the model."""
    job = origin.job
    if job.task not in TASKS:
        raise JobError(
            f"Models of task {job.task} give no answers: {', '.join(TASKS)} are asked. Name a file "
            "of samples as 'test' of a job instead."
        )
    files = files_of(job, origin.folder)
    with absent_folders_named(origin.folder, job.model, job.adapter):
        files.check()
        tokenizer, config = files.tokenizer(), files.config()
    encoder: Any = encoder_of(job, tokenizer, config)
    asked: Objective | None = None
    if job.task == "preference":
        encoder, asked = _of_answers(run, encoder), CausalLM("sum")
    return encoder, builder_of(job, files, objective_of(job), asked)


def _of_answers(run: InfluenceRun, pairs: Any) -> AnswerEncoder | ChatEncoder:
    """What reads one answer as both were read: conversations are told without a prompt."""
    if "prompt" not in run.metadata("train"):
        return ChatEncoder(pairs.tokenizer, pairs.max_length)
    return AnswerEncoder(pairs.tokenizer, pairs.max_length, chat=pairs.chat)
