"""Several labels of a sample in one text, from which they can be told again."""

import csv
from collections.abc import Iterable
from io import StringIO


def write_labels(labels: Iterable[object]) -> str:
    """Writes labels with commas between them, as in a line of CSV.

    Args:
        labels: names or numbers.

    Returns:
        A text; a name that could be read otherwise stands in double quotes, its own ones doubled.

    Example:
        >>> write_labels(["jazz", "rock, pop"])
        'jazz, "rock, pop"'
    """
    return ", ".join(_quoted(str(label)) for label in labels)


def read_labels(text: str) -> tuple[str, ...]:
    """Reads what `write_labels` wrote.

    Args:
        text: in which quotes need not stand.

    Returns:
        The labels; none where quotes are not as they have to be.

    Example:
        >>> read_labels('jazz, "rock, pop"')
        ('jazz', 'rock, pop')
    """
    try:
        (names,) = csv.reader(StringIO(text, newline=""), skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return ()
    return tuple(names)


def _quoted(name: str) -> str:
    is_plain = name and name == name.strip() and not set(name) & set(',"\r\n')
    return name if is_plain else '"' + name.replace('"', '""') + '"'
