"""From a job to what a run takes: a builder of the influence model, batches, and columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    Encoder,
    InfluenceBuilder,
    ModelFiles,
    TagEncoder,
    TokenSamples,
    read_records,
)
from pydvl_datainf.huggingface.records import Placed, column
from pydvl_datainf.jobfile.places import model_in, path_in
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.run import InfluenceRun, run_influences

SIDES = ("test", "train")
PACKAGES = ("transformers", "peft", "tokenizers")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run takes.

    Attributes:
        builder: makes the influence model.
        samples: for each side its tokenised samples.
        ids: for each side the names of its samples, where a column holds them.
        columns: for each side what is stored of its samples.
        told: what is stored of the run.
        job: that was prepared.
    """

    builder: InfluenceBuilder
    samples: Mapping[str, TokenSamples]
    ids: Mapping[str, Sequence[Any]]
    columns: Mapping[str, Mapping[str, Sequence[Any]]]
    told: Mapping[str, Any]
    job: Job

    def loader(self, side: str) -> DataLoader[Any]:
        """Batches of a side, in the order of the file."""
        return self.samples[side].to_loader(self.job.batch_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What is asked of the run, as `run_influences` takes it."""
        return {
            "memory": self.job.memory,
            "rows": self.job.rows,
            "top_k": self.job.top_k,
            "by_block": self.job.by_block,
            "self_influence": self.job.self_influence,
            "ids": self.ids or None,
            "metadata": {**self.columns, "run": self.told},
        }

    def run(self, store: str, *, overwrite: bool, progress: bool) -> InfluenceRun:
        """Computes the influences, or what is missing of them.

        Args:
            store: where the result goes.
            overwrite: replace another run.
            progress: show bars on stderr.

        Returns:
            The complete run.
        """
        return run_influences(
            self.builder,
            self.loader("test"),
            self.loader("train"),
            store,
            client=self.job.scheduler,
            n_jobs=self.job.jobs,
            overwrite=overwrite,
            progress=progress,
            **self.settings,
        )


def prepare(job: Job, folder: Path, progress: bool) -> Prepared:
    """Reads and tokenises the data; of the model only its configuration is read.

    Args:
        job: what is to be done.
        folder: from which relative paths are meant.
        progress: show bars on stderr.

    Returns:
        What a run takes.
    """
    files = ModelFiles(
        task=job.task,
        model=model_in(folder, job.model),
        adapter=None if job.adapter is None else model_in(folder, job.adapter),
        labels=job.labels,
        dtype=job.dtype,
        attention=job.attention,
        trust_remote_code=job.trust_remote_code,
    )
    heads = files.adapter_heads()
    config, tokenizer, padding = files.config(), files.tokenizer(), files.padding()
    encoder = encoder_of(job, tokenizer, config)
    samples, ids, columns = {}, {}, {}
    for side, name in zip(SIDES, (job.test, job.train), strict=True):
        records = read_records(Path(path_in(folder, name)))
        bar = tqdm(records, f"tokenising {side} data", leave=False, disable=not progress)
        encoded = [encoder.encode(placed) for placed in bar]
        samples[side] = TokenSamples(encoded, padding)
        columns[side] = _columns(job, encoder, records) | {"tokens": samples[side].lengths}
        if job.columns.id is not None:
            ids[side] = [column(placed, job.columns.id) for placed in records]
    told = {
        "job": job.as_told(),
        "heads trained with the adapter": list(heads),
        "heads take part": bool(heads) and job.parameters in ("adapters+heads", "all"),
        "versions": {package: version(package) for package in PACKAGES},
    }
    builder = InfluenceBuilder(
        files,
        parameters=job.parameters,
        device=job.device,
        reduction=job.reduction,
        regularization=job.damping,
        block_structure=job.blocks,
        max_tokens=job.max_tokens,
    )
    return Prepared(builder, samples, ids, columns, told, job)


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
    if job.task != "sequence-classification" and not tokenizer.is_fast:
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
    labels, count = dict(config.label2id), config.num_labels
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


def _columns(job: Job, encoder: Encoder, records: Sequence[Placed]) -> dict[str, list[Any]]:
    rows = [
        encoder.shown(placed) | {name: column(placed, name) for name in job.columns.show}
        for placed in records
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}
