"""The data and the model of a job on texts; unusable samples are refused or left out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import Encoder, ModelFiles, Task, TokenSamples
from pydvl_datainf.huggingface.encoder import Encoded, UnusableError
from pydvl_datainf.huggingface.optimizer import checked_file
from pydvl_datainf.huggingface.records import Place, Placed
from pydvl_datainf.jobfile.columns import columns_of
from pydvl_datainf.jobfile.data import Material, Side
from pydvl_datainf.jobfile.encoders import encoder_of as encoder_of
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
