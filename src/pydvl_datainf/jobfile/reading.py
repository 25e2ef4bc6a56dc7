"""From a YAML file and options of the command line to a job; errors name line and field."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface.folders import absence
from pydvl_datainf.huggingface.records import MOST_DIGITS, brief, check_is_file, is_text
from pydvl_datainf.jobfile.schema import (
    COLUMNS,
    DATASET,
    FIELDS,
    FILE,
    Columns,
    HubData,
    Job,
    Training,
)

MOST_BYTES = 2**20


def read_job(path: Path | None, options: Mapping[str, Any]) -> Job:
    """Reads and checks a job.

    Args:
        path: a YAML file, or None where options say all.
        options: fields that take precedence over the file's; None = not given.

    Returns:
        The job.

    Raises:
        JobError: if the file is no YAML, or fields are unknown, missing or wrong; lists all that is
            wrong, each with its line.
    """
    tree = None if path is None else _tree(path)
    given = {} if tree is None else _fields(tree, path)
    asked = {name: value for name, value in options.items() if value is not None}

    def place(loc: tuple[Any, ...]) -> str:
        if loc and loc[0] in asked:
            return f"option --{loc[0]}"
        if tree is None:
            return "the command line"
        return f"{path}, line {_line(tree, loc)}"

    try:
        job = Job.model_validate(given | asked)
    except ValidationError as error:
        raise JobError(_joined(_of_fields(error, place))) from None
    wrong = list(_of_meaning(job))
    if wrong:
        raise JobError(_joined(f"{place(loc)}: {message}" for loc, message in wrong))
    return job


def _joined(lines: Any) -> str:
    return "The job is not valid:" + "".join(f"\n  - {line}" for line in dict.fromkeys(lines))


# YAML


def _tree(path: Path) -> yaml.Node:
    try:
        if not path.exists():
            raise JobError(absence(path, "file"))
        check_is_file(path)
        if path.stat().st_size > MOST_BYTES:
            raise JobError(f"{path} is no job file: it has more than {MOST_BYTES:,} bytes.")
        tree = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not text in UTF-8: {error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_yaml(path, error) from error
    if not isinstance(tree, yaml.MappingNode):
        raise JobError(f"{path}: expected fields such as 'task: causal-lm', one a line.")
    return tree


def _fields(tree: yaml.Node, path: Path | None) -> dict[str, Any]:
    loader = yaml.SafeLoader("")
    try:
        for node in _nodes(tree):
            if isinstance(node, yaml.MappingNode):
                _check_unique(node, path)
            if isinstance(node, yaml.ScalarNode):
                _check_scalar(node, path)
        fields: dict[str, Any] = loader.construct_document(tree)
    except JobError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _not_yaml(path, error) from error
    return fields


def _not_yaml(path: Path | None, error: Exception) -> JobError:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f", line {mark.line + 1}"
    return JobError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}.")


def _nodes(tree: yaml.Node) -> Iterator[yaml.Node]:
    """All nodes, each once: nested aliases would make billions of a few."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_scalar(node: yaml.ScalarNode, path: Path | None) -> None:
    """What YAML can write, and neither a file's name nor a result can hold."""
    place, text = f"{path}, line {node.start_mark.line + 1}", node.value
    if node.tag.endswith(":int") and len(text) > MOST_DIGITS:
        raise JobError(f"{place}: a number of {len(text):,} digits; give one that fits.")
    if "\0" in text or not is_text(text):
        raise JobError(f"{place}: {brief(text)} holds NUL or half a character; write it out whole.")


def _check_unique(node: yaml.MappingNode, path: Path | None) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise JobError(f"{path}, line {key.start_mark.line + 1}: a field's name must be text.")
        if key.value in seen:
            name = brief(key.value)
            raise JobError(f"{path}, line {key.start_mark.line + 1}: {name} stands twice.")
        seen.add(key.value)


def _line(node: yaml.Node, loc: tuple[Any, ...]) -> int:
    """The line of a field, or of the nearest that encloses it and is there."""
    line: int = node.start_mark.line
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == step]
            if not found:
                continue  # the name of a variant of a type
            key, node = found[0]
            line = key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
    return line + 1


# What is wrong


_PARTS: Mapping[str, type[BaseModel]] = {
    "columns": Columns,
    "training": Training,
    "train": HubData,
    "test": HubData,
}
"""Fields that have fields."""


def _of_fields(error: ValidationError, place: Any) -> Iterator[str]:
    """One line for each field that is wrong, whatever the number of types that it could have."""
    seen: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for found in error.errors(include_url=False):
        loc = _field_of(found["loc"])
        seen.setdefault(loc, []).append(found)
    for loc, several in seen.items():
        name, kind = ".".join(map(str, loc))[:100], several[0]["type"]
        if kind == "missing":
            yield f"{place(loc)}: '{name}' is required."
        elif kind == "extra_forbidden":
            allowed = _PARTS[loc[0]] if len(loc) > 1 else Job
            yield f"{place(loc)}: '{name}' is unknown{_meant(str(loc[-1]), allowed)}"
        else:
            wanted = " or ".join(dict.fromkeys(_allowed(one) for one in several))
            yield f"{place(loc)}: '{name}' must be {wanted}; got {brief(several[0]['input'])}."


def _meant(name: str, allowed: type[BaseModel]) -> str:
    """The fields that are called nearly so, or all of them."""
    there = sorted(allowed.model_fields)
    near = get_close_matches(name.lower(), there)
    if near:
        return f'; did you mean {" or ".join(near)}? All are in docs/language-models.md, "Fields".'
    return f"; there are {', '.join(there)}."


def _field_of(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path of a field, without what pydantic adds for the variants of a type."""
    plain = tuple(step for step in loc if step not in (FILE, DATASET))
    return plain[: 2 if plain[0] in _PARTS else 1]


def _allowed(found: Mapping[str, Any]) -> str:
    message: str = found["msg"]
    words = {"tuple_type": "a list", "model_type": "fields and values", "dict_type": "fields"}
    short = words.get(found["type"], message.removeprefix("Value error, "))
    return short.removeprefix("Input should be ").removeprefix("a valid ")


def _of_meaning(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go together."""
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
    yield from _of_placement(job)
    if job.scheduler is not None and job.jobs is not None:
        yield ("jobs",), "'scheduler' and 'jobs' exclude each other; name one."
    if job.training is not None and job.checkpoints is None:
        yield from _of_training(job.training, has_adapter=job.adapter is not None)


def _of_placement(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
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


def _of_method(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go with the method, or with how rows are kept."""
    if job.method == "hessian-free" and job.damping != "auto":
        yield ("damping",), "'damping' is not used by method hessian-free; leave out one of them."
    for name in sorted({"iterations", "tolerance"} & job.model_fields_set):
        if job.method != "lissa":
            yield (name,), f"'{name}' belongs to method lissa, and not to {job.method}."
    yield from _of_curvature(job)
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


def _of_data(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
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


def _of_curvature(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
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


def _of_training(training: Training, *, has_adapter: bool) -> Iterator[tuple[tuple[str, ...], str]]:
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


def _of_checkpoints(job: Job) -> Iterator[tuple[tuple[str, ...], str]]:
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
