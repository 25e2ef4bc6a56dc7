"""From a YAML file and options of the command line to a job; errors name line and field."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface.folders import absence
from pydvl_datainf.huggingface.record_values import brief, is_text
from pydvl_datainf.huggingface.records import MOST_DIGITS, check_is_file
from pydvl_datainf.jobfile.conflicts import conflicts_of
from pydvl_datainf.jobfile.schema import DATASET, FILE, Columns, HubData, Job, Training

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
    wrong = list(conflicts_of(job))
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
