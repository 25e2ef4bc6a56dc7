"""A page of answers, their tokens coloured by what the influence of each training sample is on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import numpy as np

from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.columns import Column, column_of, ids_of, length_limit, ordered
from pydvl_datainf.report.page import rendered, template
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.by_token import AnswerByToken, answers_by_token
from pydvl_datainf.results.reader import InfluenceRun

LEVELS = 10
"""Shades of either colour: a page that allows no styles but its own names each by a class."""

MOST_CELLS = 200_000
"""Tokens that are coloured on one page, each once for each sample; further answers are left out."""


@dataclass(frozen=True, slots=True)
class Row:
    """A training sample beside an answer.

    Attributes:
        id: of the sample.
        influence: on the answer, as text.
        is_helpful: whether that is positive.
        tokens: of the answer; for each its text, its shade and its number.
        columns: what is known of the sample, as names and texts.
    """

    id: str
    influence: str
    is_helpful: bool
    tokens: Sequence[tuple[str, str, str]]
    columns: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer as the page shows it.

    Attributes:
        answer: with its tokens.
        strongest: the number that has the strongest colour, as text.
        rows: training samples, the most helpful first.
    """

    answer: AnswerByToken
    strongest: str
    rows: Sequence[Row]


def token_page_of(run: InfluenceRun, bounds: Bounds) -> bytes:
    """Puts the page together.

    Args:
        run: complete, asked token by token.
        bounds: how much of it.

    Returns:
        The page, in UTF-8.
    """
    answers = list(answers_by_token(run, bounds.k))
    cells = accumulate(answer.parts.size for answer in answers[: bounds.tests])
    count = max(1, sum(1 for _ in takewhile(lambda total: total <= MOST_CELLS, cells)))
    held = answers[:count]
    told, ids = run.metadata("train"), run.train_ids
    chosen = np.concatenate([answer.positions for answer in held])
    texts = [values[chosen] for values in (ids, *told.values())]
    limit = length_limit(texts, bounds.characters)
    shown = [_shown(answer, ids, told, limit) for answer in held]
    cut = sum(len(column.cut) for column in _columns(ids, told, np.unique(chosen), limit))
    return rendered(
        "tokens.html.j2",
        template("report.css") + template("tokens.css"),
        "",
        answers=shown,
        method=run.attrs["method"],
        sign=run.attrs["sign"],
        created=run.attrs["created"],
        left_out=list(_left_out(len(answers) - count, cut, limit)),
    )


def _left_out(answers: int, cut: int, limit: int) -> Iterator[str]:
    if answers:
        yield f"{answers:,} further answers: ask in several calls."
    if cut:
        yield f"what stands behind character {limit:,} of {cut:,} texts."


def _columns(ids: Array, told: dict[str, Array], chosen: Array, limit: int) -> list[Column]:
    named = [column_of(name, told[name], chosen, limit) for name in ordered(told)]
    return [ids_of(ids, chosen, limit), *named]


def _shown(answer: AnswerByToken, ids: Array, told: dict[str, Array], limit: int) -> Shown:
    strongest = float(np.abs(answer.parts).max())
    names, *columns = _columns(ids, told, answer.positions, limit)
    rows = [
        Row(
            id=str(names.values[i]),
            influence=f"{influence:+.2e}",
            is_helpful=bool(influence > 0),
            tokens=[
                (_visible(token), _shade(part, strongest), f"{part:+.2e}")
                for token, part in zip(answer.tokens, answer.parts[:, i], strict=True)
            ],
            columns=[(column.name, str(column.values[i])) for column in columns],
        )
        for i, influence in enumerate(answer.influences)
    ]
    return Shown(answer, f"{strongest:.2e}", rows)


def _shade(part: float, strongest: float) -> str:
    """The class of a number: its colour, and how strong it is."""
    level = round(LEVELS * abs(part) / strongest) if strongest > 0 else 0
    return f"{'p' if part > 0 else 'n'}{level}"


def _visible(token: str) -> str:
    """A token with its line breaks marked, which alone would have no place for a colour."""
    return token.replace("\n", "↵\n")
