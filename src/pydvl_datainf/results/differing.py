"""Lists what differs between two runs, for errors of those who compare them."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydvl_datainf.terminal import some

_DIGEST = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{64}")
"""Checksums of contents, which tell nobody anything."""


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> list[str]:
    """What differs between the fingerprints of two runs, a line each.

    Args:
        stored: of the run in the store.
        now: of the run that is asked for.
        same: whether two entries are; those of the run's metadata are where JSON has one text for
            both, since to Python 1 equals True.

    Returns:
        Lines for people.
    """
    lines = []
    for key in dict.fromkeys((*stored, *now)):
        a, b = stored.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and key == "run metadata":
            lines += [f"{key}: {line}" for line in differences(a, b, _same_text)]
        elif same(a, b):
            continue
        elif isinstance(a, dict) and isinstance(b, dict):
            names = [k for k in dict.fromkeys((*a, *b)) if not same(a.get(k), b.get(k))]
            lines.append(f"{key}: {len(names)} differ ({some(map(repr, names))})")
        elif all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (a, b)):
            lines.append(f"{key}: other than in the store")
        else:
            lines.append(f"{key}: {a!r} in the store, {b!r} now")
    return lines


def _same_text(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def listed(lines: Sequence[str]) -> str:
    """Lines as a list, below what introduces them."""
    return "".join(f"\n  - {line}" for line in lines)
