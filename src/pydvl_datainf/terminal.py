"""Texts for people: the first of many names, and nothing that moves a cursor or hides."""

import re
from collections.abc import Iterable
from unicodedata import category

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that are no letter, mark or blank: controls, formats, line separators,
and halves of surrogate pairs, which cannot even be written."""

LONGEST = 10_000
"""Characters of a text; what is longer is cut."""

_UNUSUAL = re.compile(r"[^\x20-\x7e\n\t]")


def visible(text: str, longest: int = LONGEST) -> str:
    r"""A text with escapes in place of characters that a terminal obeys or does not show.

    Args:
        text: from anybody; line feeds and tabs stay.
        longest: characters at which it is cut.

    Returns:
        The text, with its length where it is cut.

    Example:
        >>> visible("\x1b[2Jevil\u202e é")
        '\\x1b[2Jevil\\u202e é'
    """
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text):,} characters)"
    return _UNUSUAL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if category(character) in HIDDEN:
        return character.encode("unicode_escape").decode()
    return character


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of some names, as messages tell them."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
