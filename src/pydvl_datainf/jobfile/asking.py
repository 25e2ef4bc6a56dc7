"""Questions to the run of a job: its model, tokenised as its training data was."""

from collections.abc import Sequence
from typing import Any

from pydvl_datainf.asking import Question, ask
from pydvl_datainf.asking.encoding import AnswersEncoder
from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from pydvl_datainf.jobfile.origin import Origin
from pydvl_datainf.jobfile.paths import absent_folders_named
from pydvl_datainf.jobfile.preparation import builder_of
from pydvl_datainf.jobfile.texts import encoder_of, files_of, objective_of
from pydvl_datainf.objectives import CausalLM, Objective
from pydvl_datainf.results.reader import InfluenceRun

TASKS = ("causal-lm", "preference")
"""Whose models answer."""


def ask_job(
    run: InfluenceRun, origin: Origin, questions: Sequence[Question], **settings: Any
) -> InfluenceRun:
    """Asks the run of a job.

    Of a preference, which has no loss of a single answer, −log π(answer | prompt) is asked, the sum
    over the tokens that count.

    Args:
        run: complete, with its training rows.
        origin: its job.
        questions: asked.
        settings: as `ask` takes them.

    Returns:
        A run whose test samples are the questions.

    Raises:
        JobError: if the model of the job gives no answers.
    """
    job = origin.job
    if job.task not in TASKS:
        raise JobError(
            f"Models of task {job.task} give no answers: {' and '.join(TASKS)} are asked. Name a "
            "file of samples as 'test' of a job instead."
        )
    files = files_of(job, origin.folder)
    with absent_folders_named(origin.folder, job.model, job.adapter):
        files.check()
        tokenizer, config = files.tokenizer(), files.config()
    encoder: Any = encoder_of(job, tokenizer, config)
    asked: Objective | None = None
    if job.task == "preference":
        encoder, asked = _of_answers(run, encoder), CausalLM("sum")
    builder = builder_of(job, files, objective_of(job), asked)
    return ask(run, builder, questions, encoder=encoder, **settings)


def _of_answers(run: InfluenceRun, pairs: Any) -> AnswersEncoder:
    """What reads one answer as both were read: conversations are told without a prompt."""
    if "prompt" not in run.metadata("train"):
        return ChatEncoder(pairs.tokenizer, pairs.max_length)
    return AnswerEncoder(pairs.tokenizer, pairs.max_length, chat=pairs.chat)
