"""Values of records: found by their column, checked to be text, and shown in messages."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.records import Placed


def column(placed: Placed, name: str) -> Any:
    """A value of a record.

    Args:
        placed: the record and its place.
        name: of the column.

    Returns:
        The value.

    Raises:
        SourceError: if there is none, which names what there is, or it holds half a character.
    """
    place, record = placed
    if name not in record:
        raise SourceError(
            f"{place}: no column '{name}'; there are {', '.join(record)}."
            f"{like_one(name, record)} In a job columns: says which are read."
        )
    if record[name] is None:
        raise SourceError(f"{place}: column '{name}' is empty.")
    if not is_text(record[name]):
        raise SourceError(
            f"{place}: column '{name}' is not text: it holds half of a surrogate pair."
        )
    return record[name]


def like_one(name: str, known: Iterable[str]) -> str:
    """Says which name may be meant by another, behind a sentence.

    Args:
        name: that is unknown.
        known: names.

    Returns:
        A sentence with a space before it; nothing where none is like it.
    """
    near = get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def brief(value: Any) -> str:
    """A value as messages show it: cut where it is long or deep."""
    return _BRIEF.repr(value)


_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 100, 100


def is_text(value: Any) -> bool:
    """Whether all that is text in a value can be written down.

    Args:
        value: text, a number, or lists and mappings of them.

    Returns:
        False where it holds half of a surrogate pair, which JSON and YAML can escape.
    """
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    except (TypeError, ValueError):  # no text, but bytes, dates and so on
        return True
    return True


def text_column(placed: Placed, name: str) -> str:
    """A value of a record that must be text.

    Args:
        placed: the record and its place.
        name: of the column.

    Returns:
        The text.

    Raises:
        SourceError: if it is missing or something else.
    """
    value = column(placed, name)
    if not isinstance(value, str):
        raise SourceError(f"{placed[0]}: column '{name}' must be text, got {type(value).__name__}.")
    return value


def conversation_text(value: Any) -> Any:
    """A conversation as text; all else as it is.

    Args:
        value: of a column.

    Returns:
        A line for each message, behind its role, if the value is a list of messages.
    """
    is_conversation = isinstance(value, list) and all(
        isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in value
    )
    if not is_conversation or not value:
        return value
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
