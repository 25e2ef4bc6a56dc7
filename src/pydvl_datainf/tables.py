"""A run as tables for the terminal: what it holds, and its most helpful and harmful samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.by_token import answers_by_token
from pydvl_datainf.results.facts import query_name, run_facts
from pydvl_datainf.results.layout import End
from pydvl_datainf.results.listing import Ranking, named_apart, rankings_by, rankings_of_test
from pydvl_datainf.results.measures import MEASURES, Measure
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.terminal import visible


def info_tables(run: InfluenceRun, blocks: bool = False) -> Iterator[Table]:
    """What a run holds, how far it is and what it cost.

    Args:
        run: complete or not.
        blocks: whether to list the λ of the blocks.

    Yields:
        Tables, in the order in which to show them.
    """
    for title, facts in run_facts(run, blocks=blocks).items():
        yield facts_table(title, facts)


def top_tables(run: InfluenceRun, position: int, k: int, ends: Sequence[End]) -> Iterator[Table]:
    """A test sample, and the training samples with the most influence on it.

    Args:
        run: complete.
        position: of the test sample.
        k: how many at each end, at most as many as the run kept.
        ends: which ends, in the order in which to show them.

    Yields:
        A table of the test sample, and one for each end.
    """
    found = list(rankings_of_test(run, position, k, ends))
    columns = _columns(run, "test").items()
    told = {name: _shown(values[position]) for name, values in columns}
    yield facts_table(f"The {query_name(run)}", told)
    for ranking in found:
        title = f"The {_samples(len(ranking.positions))} most {ranking.end} to it"
        yield _ranking_table(run, title, ranking)


def mean_tables(
    run: InfluenceRun, k: int, ends: Sequence[End], by: str = "mean"
) -> Iterator[Table]:
    """The training samples at the ends of a measure: by default the mean influence.

    Args:
        run: complete.
        k: how many at each end; at most n are shown.
        ends: which ends, in the order in which to show them; that of harmful samples is the
            suspicious one of measures that are no influences.
        by: one of `MEASURES`.

    Yields:
        A table for each end.
    """
    measure = MEASURES[by]
    for ranking in rankings_by(run, k, ends, by):
        count = len(ranking.positions)
        if measure.is_suspicion:
            title = _title_of_suspicion(measure, ranking.end, count)
        else:
            how = "on average" if by == "mean" else f"by {measure.name}"
            title = f"The {_samples(count)} most {ranking.end} {how}"
        yield _ranking_table(run, title, ranking)


LONGEST_TOKEN = 16
"""Characters for which a table has room, before longer names of samples are folded."""


def token_tables(run: InfluenceRun, k: int) -> Iterator[Table]:
    """Which tokens of an answer the influences of the training samples at both ends come from.

    Args:
        run: complete, asked token by token.
        k: training samples at either end, at most.

    Yields:
        A table for each answer, with a row for each token and a column for each sample; the last
        row has the sums over tokens: the influences on the answer.
    """
    ids = run.train_ids
    for answer in answers_by_token(run, k):
        largest = max(np.abs(answer.parts).max(), np.abs(answer.influences).max())
        unit = 10.0 ** np.floor(np.log10(largest)) if largest > 0 else 1.0
        caption = f"Influences in units of {unit:.0e}, positive = helpful. {answer.meaning}"
        table = titled_table(f"{answer.prompt}\n{answer.answer}", caption=caption)
        table.pad_edge, table.padding = False, (0, 1, 0, 0)
        longest = max(map(len, answer.tokens))
        table.add_column("token", overflow="fold", min_width=min(longest, LONGEST_TOKEN))
        for position in answer.positions:
            table.add_column(_text(str(ids[position])), justify="right", overflow="fold")
        for token, row in zip(answer.tokens, answer.parts / unit, strict=True):
            table.add_row(_text(token.replace("\n", "↵")), *(f"{value:+.2f}" for value in row))
        table.add_section()
        table.add_row("all", *(f"{value:+.2f}" for value in answer.influences / unit))
        yield table


def _samples(count: int) -> str:
    return "training sample" if count == 1 else f"{count} training samples"


def _title_of_suspicion(measure: Measure, end: End, count: int) -> str:
    which = "largest" if end == "harmful" else "smallest"
    return f"The {_samples(count)} with the {which} {measure.name}"


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Names and values.

    Args:
        title: stands above.
        facts: a line each.

    Returns:
        A table without header.
    """
    table = titled_table(title, header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_text(name), _text(value))
    return table


def titled_table(title: str, caption: str | None = None, header: bool = True) -> Table:
    """An empty table in our style.

    Args:
        title: stands above, and may hold square brackets.
        caption: stands below.
        header: whether names of columns are shown.

    Returns:
        The table.
    """
    return Table(
        title=_text(title, style="bold"),
        title_justify="left",
        caption=None if caption is None else _text(caption),
        caption_justify="left",
        show_header=header,
        box=SIMPLE_HEAD,
        min_width=66,
    )


# Samples


def _columns(run: InfluenceRun, side: Literal["test", "train"]) -> dict[str, Array]:
    """Ids and metadata in their order, but numbers before texts."""
    told = sorted(run.metadata(side).items(), key=lambda item: item[1].dtype.kind == "O")
    return named_apart({"id": run.test_ids if side == "test" else run.train_ids}, dict(told))


def _ranking_table(run: InfluenceRun, title: str, ranking: Ranking) -> Table:
    """Samples with a number of each: an influence, or another measure."""
    is_influence = ranking.kind == "influence"
    columns = {n: column[ranking.positions] for n, column in _columns(run, "train").items()}
    caption = _against(ranking.values, ranking.end) if is_influence else _definition(ranking)
    table = titled_table(title, caption=caption)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)  # room for texts
    name = "influence" if is_influence else ranking.measure
    table.add_column(name, justify="right", overflow="fold")
    for column, told in columns.items():
        numeric = told.dtype.kind in "iuf"
        table.add_column(_text(column), justify="right" if numeric else "left", overflow="fold")
    for number, *row in zip(ranking.values, *columns.values(), strict=True):
        shown = f"{number:+.2e}" if is_influence else f"{number:.4g}"
        table.add_row(shown, *(_text(_shown(value)) for value in row))
    return table


def _against(influences: Array, end: End) -> str | None:
    """Of the samples at one end, those that are not what it is called: there were no others."""
    not_so = int((influences <= 0 if end == "helpful" else influences >= 0).sum())
    if not not_so:
        return None
    how_many = "all" if not_so == len(influences) else f"{not_so:,}"
    sign = "positive" if end == "helpful" else "negative"
    return f"Not {end}, since the influence is not {sign}: {how_many} of these."


def _definition(ranking: Ranking) -> str | None:
    """What the numbers are, where their name does not say."""
    told = {measure.name: measure.definition for measure in MEASURES.values()}[ranking.measure]
    return f"{ranking.measure.capitalize()} is {told}." if told else None


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _text(value: str, style: str = "") -> Text:
    # As Text, so that square brackets are not read as markup.
    return Text(visible(value), style=style)
