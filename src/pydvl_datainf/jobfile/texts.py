"""The data and the model of a job on texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    Encoder,
    ModelFiles,
    PairEncoder,
    TagEncoder,
    Task,
    TokenSamples,
    TranslationEncoder,
)
from pydvl_datainf.huggingface.encoder import UnusableError
from pydvl_datainf.huggingface.optimizer import checked_file
from pydvl_datainf.huggingface.records import Place, Placed
from pydvl_datainf.huggingface.tokens import Encoded
from pydvl_datainf.jobfile.data import Material, Side, columns_of
from pydvl_datainf.jobfile.paths import absent_folders_named, model_in
from pydvl_datainf.jobfile.records import records_of
from pydvl_datainf.jobfile.schema import HubData, Job
from pydvl_datainf.objectives import (
    CausalLM,
    Objective,
    Preference,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
)

ANSWERS = ("answer", "chosen", "rejected", "target")
"""What encoders show of a record that the model is to say."""


def text_material(job: Job, folder: Path, progress: bool) -> Material:
    """Reads and tokenises texts; of the model only its configuration is read.

    Args:
        job: what is to be done.
        folder: from which relative paths are meant.
        progress: show bars on stderr.

    Returns:
        The material of a run.
    """
    files = files_of(job, folder)
    with absent_folders_named(folder, job.model, job.adapter):
        files.check()
        _check_optimizer(job, files)
        heads = files.adapter_heads()
        config = files.config()
        encoder, padding = encoder_of(job, files.tokenizer(), config), files.padding()

    def side(data: str | HubData, what: str) -> Side:
        read = records_of(job, data, folder)
        bar = tqdm(read, f"tokenising {what} data", leave=False, disable=not progress)
        with bar:  # an error does not stand on its line
            encoded, left_out = _encoded(encoder, bar, skip=job.on_unusable == "skip")
        dropped = set(left_out)
        records = [placed for placed in read if placed[0] not in dropped]
        if not records:
            raise SourceError(
                f"Of none of the {len(read):,} samples of the {what} data a token counts; the "
                f"first is {read[0][0]}. Raise max_length, or look at the columns."
            )
        samples = TokenSamples(encoded, padding)
        _check_lengths(samples, records, config)
        columns, ids = columns_of(job, what, records, encoder.shown)
        empty = [placed[0] for placed in records if _has_empty_answer(encoder, placed)]
        return Side(samples, columns | {"tokens": samples.lengths}, ids, left_out, empty)

    test, train = side(job.test, "test"), side(job.train, "training")
    return Material(files, objective_of(job), test, train, heads, unit="tokens")


def _encoded(
    encoder: Encoder, records: Iterable[Placed], *, skip: bool
) -> tuple[list[Encoded], list[Place]]:
    """Tokenised samples, and the places of those of which nothing counts, if these are skipped."""
    encoded, left_out = [], []
    for placed in records:
        try:
            encoded.append(encoder.encode(placed))
        except UnusableError:
            if not skip:
                raise
            left_out.append(placed[0])
    return encoded, left_out


def _has_empty_answer(encoder: Encoder, placed: Placed) -> bool:
    shown = encoder.shown(placed)
    return any(not str(shown[name]).strip() for name in ANSWERS if name in shown)


def check_text_files(job: Job, folder: Path) -> None:
    """Checks that a model and its adapter are there, as far as they are read before the data."""
    files = files_of(job, folder)
    with absent_folders_named(folder, job.model, job.adapter):
        files.check()
        _check_optimizer(job, files)
        files.adapter_heads()
        files.config()


def _check_optimizer(job: Job, files: ModelFiles) -> None:
    """Finds early that the state of the optimizer is not there."""
    if job.preconditioner is not None:
        checked_file(files.tuned)


def files_of(job: Job, folder: Path) -> ModelFiles:
    """Where the model of a job on texts is.

    Args:
        job: names it.
        folder: from which relative paths are meant.

    Returns:
        The files, not looked at yet.
    """
    return ModelFiles(
        task=cast(Task, job.task),
        model=model_in(folder, job.model),
        adapter=None if job.adapter is None else model_in(folder, job.adapter),
        labels=job.labels,
        dtype=job.dtype,
        attention=job.attention,
        trust_remote_code=job.trust_remote_code,
        trust_pickle=job.trust_pickle,
        device=job.device,
        quantization=job.quantization,
    )


def _check_lengths(samples: TokenSamples, records: list[Placed], config: Any) -> None:
    """Checks that the model has a position for each token."""
    most = getattr(config, "max_position_embeddings", None)
    for sample, (place, _) in zip(samples.samples, records, strict=True):
        longest = max(len(ids) for name, ids in sample.items() if name.endswith("input_ids"))
        if most is not None and longest > most:
            raise SourceError(
                f"{place}: {longest} tokens, and the model has {most} positions. Lower max_length."
            )


def objective_of(job: Job) -> Objective:
    """The objective of a job.

    Args:
        job: on texts.

    Returns:
        The objective.
    """
    objectives: dict[str, Any] = {
        "causal-lm": lambda: CausalLM(job.reduction),
        "preference": lambda: Preference(job.beta),
        "seq2seq-lm": lambda: Seq2SeqLM(job.reduction),
        "sequence-classification": SequenceClassification,
        "token-classification": lambda: TokenClassification(job.reduction),
    }
    objective: Objective = objectives[job.task]()
    return objective


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
