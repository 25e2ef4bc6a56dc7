"""Which fields of a job exclude or require each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from pydvl_datainf.jobfile.schema import COLUMNS, FIELDS, HubData, Job, Training

Conflict: TypeAlias = tuple[tuple[str, ...], str]
"""The path of a field, and what is wrong with it."""


def conflicts_of(job: Job) -> Iterator[Conflict]:
    """What does not go together in a job whose fields are each by itself as they may be.

    Args:
        job: to be checked.

    Yields:
        The path of a field, and what is wrong with it.
    """
    yield from _of_task(job)
    yield from _of_data(job)
    if job.labels is not None and len(set(job.labels)) < len(job.labels):
        yield ("labels",), "'labels' must differ from each other."
    if job.out.startswith("memory:"):
        yield ("out",), "'out' must be a place that lasts; memory is gone when the command ends."
    yield from _of_checkpoints(job)
    if job.task == "preference" and not job.tunes_adapters:
        yield (), "'adapter' is required: without it the model is the reference of a preference."
    if job.top_k is not None and job.by_block:
        yield ("by_block",), "'top_k' keeps total scores only; leave out one of the two."
    if job.normalize is not None and job.self_influence:
        yield (
            ("normalize",),
            "'normalize' and 'self_influence' exclude each other: the two would be in other units.",
        )
    yield from _of_method(job)
    yield from _of_curvature(job)
    yield from _of_damping_scale(job)
    yield from _of_rows(job)
    yield from _of_placement(job)
    if job.scheduler is not None and job.jobs is not None:
        yield ("jobs",), "'scheduler' and 'jobs' exclude each other; name one."
    if job.training is not None and job.checkpoints is None:
        yield from _of_training(job.training, has_adapter=job.adapter is not None)


def _of_task(job: Job) -> Iterator[Conflict]:
    """What the task does not take."""
    own = COLUMNS[job.task]
    for name in job.columns.model_fields_set - {*own, "id", "show", "show_train"}:
        yield (
            ("columns", name),
            f"'columns.{name}' does not belong to task {job.task}, which reads {', '.join(own)}.",
        )
    for name, tasks in FIELDS.items():
        if name in job.model_fields_set and job.task not in tasks:
            belongs = ", ".join(tasks)
            yield (name,), f"'{name}' does not belong to task {job.task}, but to {belongs}."
    kinds = job.columns.model_fields_set & {"text", "messages", "answer"}
    if job.task == "causal-lm" and len(kinds) > 1:
        yield ("columns",), f"{' and '.join(sorted(kinds))} exclude each other; name one."
    if job.task == "causal-lm" and job.chat and kinds & {"text", "messages"}:
        yield ("chat",), "'chat' is for prompt and answer; messages are in the template anyway."


def _of_placement(job: Job) -> Iterator[Conflict]:
    """What does not go with how the model is loaded."""
    if job.quantization is not None and job.parameters == "all":
        yield (
            ("parameters",),
            "'parameters: all' would leave out the quantised weights, which have no gradients; let "
            "them be adapters, adapters+heads or patterns.",
        )
    if job.quantization is not None and job.training is not None and job.adapter is None:
        yield (
            ("training",),
            "quantised weights are not tuned themselves: with 'quantization', 'training' belongs "
            "to an 'adapter'.",
        )
    if job.device == "spread" and job.task == "denoising":
        yield ("device",), "'device: spread' does not belong to task denoising."
    if job.device == "spread" and job.training is not None:
        yield ("device",), "'training' tunes on one device; let 'device' be auto, cpu or cuda."


def _of_method(job: Job) -> Iterator[Conflict]:
    """Settings that the method does not use."""
    if job.method == "hessian-free" and job.damping != "auto":
        yield ("damping",), "'damping' is not used by method hessian-free; leave out one of them."
    for name in sorted({"iterations", "tolerance"} & job.model_fields_set):
        if job.method != "lissa":
            yield (name,), f"'{name}' belongs to method lissa, and not to {job.method}."


def _of_damping_scale(job: Job) -> Iterator[Conflict]:
    if job.damping_scale is not None and job.method == "hessian-free":
        yield (
            ("damping_scale",),
            "'damping_scale' is not used by method hessian-free; leave out one of them.",
        )
    if job.damping_scale is not None and isinstance(job.damping, float):
        yield (
            ("damping_scale",),
            "'damping_scale' multiplies automatic damping, and 'damping' is a number; leave out "
            "one of them.",
        )


def _of_rows(job: Job) -> Iterator[Conflict]:
    """What does not go with how rows are kept, or what they are."""
    if job.method in ("exact", "ekfac", "lissa") and job.rows == "recompute":
        yield (
            ("rows",),
            f"method {job.method} needs all rows together; let 'rows' be zarr or memory.",
        )
    if job.method == "ekfac" and job.rows == "compressed":
        yield (
            ("rows",),
            "method ekfac needs whole rows; let 'rows' be zarr, or 'method' be exact.",
        )
    if job.method == "ekfac" and job.preconditioner is not None:
        yield (
            ("preconditioner",),
            "method ekfac needs the gradients of layers as matrices; let 'method' be exact or "
            "datainf, or leave 'preconditioner' out.",
        )
    if job.rank == "auto" and job.sides is not None:
        yield (
            ("sides",),
            "rank auto looks at whole gradients, which 'sides' does without; let 'rank' be a "
            "number, or leave 'sides' out.",
        )
    for name in ("rank", "basis_sample", "basis_seed", "sides"):
        if getattr(job, name) is not None and job.rows != "compressed":
            yield (
                (name,),
                f"'{name}' is that of compressed rows; let 'rows' be compressed.",
            )


def _of_data(job: Job) -> Iterator[Conflict]:
    sides = {"train": job.train, "test": job.test}
    if job.task == "denoising":
        for name, data in sides.items():
            if isinstance(data, HubData):
                yield (name,), f"'{name}' must be a file, from which on images are found."
    suffixes = {Path(data).suffix.lower() for data in sides.values() if isinstance(data, str)}
    if job.quoting is not None and not suffixes & {".csv", ".tsv"}:
        yield ("quoting",), "'quoting' is for CSV and TSV files, and the job has none."
    both = set(job.columns.show) & set(job.columns.show_train)
    if both:
        yield (
            ("columns", "show_train"),
            f"'columns.show_train' names {', '.join(sorted(both))}, which 'columns.show' has.",
        )


def _of_curvature(job: Job) -> Iterator[Conflict]:
    """What does not go together under another curvature."""
    for name in ("curvature_labels", "label_seed"):
        if getattr(job, name) is not None and job.curvature is None:
            yield (name,), f"'{name}' belongs to 'curvature: gauss-newton', which is not there."
    if job.curvature is None:
        return
    if job.method not in ("datainf", "exact", "ekfac"):
        yield (
            ("curvature",),
            f"'curvature' belongs to methods datainf, exact and ekfac, and not to {job.method}.",
        )
    if job.method == "ekfac" and job.curvature_labels == "all":
        yield (
            ("curvature_labels",),
            "method ekfac takes labels that are drawn; leave 'curvature_labels' out.",
        )
    if job.rows == "compressed" and job.method != "ekfac":
        yield (
            ("curvature",),
            "'curvature' takes other rows than the gradients, from which the bases of compressed "
            "rows are learned; let 'rows' be zarr, or leave 'curvature' out.",
        )
    if job.exact_sample not in (0, "auto"):
        yield (
            ("exact_sample",),
            "'exact_sample' compares inverses of the gradients; leave it or 'curvature' out.",
        )


def _of_training(training: Training, *, has_adapter: bool) -> Iterator[Conflict]:
    for name in ("base", "trained"):
        is_given = getattr(training, name) is not None
        if has_adapter and is_given:
            yield (
                ("training", name),
                f"'training.{name}' is for models without an adapter; the base of one is 'model', "
                "and what was trained stands in its configuration.",
            )
        if not has_adapter and not is_given:
            yield ("training",), f"'training.{name}' is required where there is no adapter."
    if training.momentum and training.optimizer != "sgd":
        yield (
            ("training", "momentum"),
            f"'training.momentum' does not belong to optimizer {training.optimizer}, but to sgd.",
        )


def _of_checkpoints(job: Job) -> Iterator[Conflict]:
    """What does not go together in a job on several checkpoints."""
    paths, weights = job.checkpoints, job.weights
    if paths is None:
        if weights is not None:
            yield ("weights",), "'weights' are those of 'checkpoints', which are not named."
        return
    if job.adapter is not None:
        yield (
            ("adapter",),
            "'adapter' and 'checkpoints' exclude each other: name adapters as 'checkpoints' of "
            "'model', or models that were tuned whole as 'checkpoints' alone.",
        )
    if job.model in paths[1:]:
        yield (
            ("model",),
            "'model' is one of the 'checkpoints': leave 'model' out where they are models, and "
            "name their base where they are adapters.",
        )
    if len(set(paths)) < len(paths):
        yield ("checkpoints",), "'checkpoints' must differ from each other."
    if weights is not None and len(weights) != len(paths):
        yield ("weights",), f"there are {len(weights)} 'weights' for {len(paths)} 'checkpoints'."
    if weights is not None and not any(weights):
        yield ("weights",), "'weights' must not be all zero."
    if job.top_k is not None:
        yield ("top_k",), "'top_k' keeps the ends of scores, which 'checkpoints' cannot add."
