"""A run in short: the most important facts, and how much of it a page holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from pydvl_datainf.inverse.methods import Inverse
from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.influences import Tops
from pydvl_datainf.report.samples import Samples, Side
from pydvl_datainf.report.thumbnails import Thumbnails
from pydvl_datainf.report.trust import Trust
from pydvl_datainf.run import InfluenceRun
from pydvl_datainf.tables import info_tables

LONGEST = 5000
"""Characters of a fact."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values under a title."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a run a page holds.

    Args:
        run: complete.
        bounds: what was asked for.
        tops: what helped and hurt most.
        samples: of both sides.
        limit: characters at which texts are cut.
        thumbnails: made for the page.
    """

    run: InfluenceRun
    bounds: Bounds
    tops: Tops
    samples: Mapping[Side, Samples]
    limit: int
    thumbnails: Thumbnails

    def held(self) -> Iterator[str]:
        """What the page holds.

        Yields:
            Sentences.
        """
        plan, k = self.run.plan, self.tops.k
        train = len(self.samples["train"].chosen)
        yield (
            f"{_of(self.tops.m, plan.m).capitalize()} {_plural(plan.m, query_name(self.run))}, and "
            f"for each the "
            f"{k:,} most helpful and the {k:,} most harmful of {plan.n:,} training samples."
        )
        yield (
            f"Labels, texts and other columns of {_of(train, plan.n)} training samples: those in "
            "one of the lists."
        )

    def left_out(self) -> Iterator[str]:
        """What the page does not hold, though it was asked for or is in the run.

        Yields:
            Sentences.
        """
        plan, k = self.run.plan, self.tops.k
        cut = sum(side.cut for side in self.samples.values())
        missing, too_much = self.thumbnails.unreadable, self.thumbnails.left_out
        if self.tops.m < plan.m:
            last = plan.m - self.tops.m
            yield f"the last {_count(last, query_name(self.run))} (more with --max-test)."
        if k < min(self.bounds.k, plan.n):
            yield f"{self.bounds.k:,} training samples at either end: the run kept {k:,}."
        if cut:
            yield f"the end of {_count(cut, 'text')} of more than {self.limit:,} characters."
        if missing:
            yield f"{_count(missing, 'image')} that cannot be read; paths are meant from --images."
        if too_much:
            yield f"{_count(too_much, 'image')}, so that the page does not become too large."


def store_name(run: InfluenceRun) -> str:
    """What the store is called: a folder without its path, which is nobody's business elsewhere."""
    path = run._store.path
    return str(run._store) if path is None else path.resolve().name


def query_name(run: InfluenceRun) -> str:
    """What a row of the scores belongs to."""
    return "test sample" if run.attrs["fingerprint"]["query groups"] is None else "group"


def facts_of(run: InfluenceRun) -> Iterator[Facts]:
    """All that `pydvl-datainf info` shows.

    Args:
        run: complete.

    Yields:
        Facts under their titles.
    """
    for table in info_tables(run, run._store):
        names, values = (
            [cell.plain if isinstance(cell, Text) else str(cell) for cell in column.cells]
            for column in table.columns
        )
        title = table.title.plain if isinstance(table.title, Text) else str(table.title)
        yield Facts(title, [(name, _cut(value)) for name, value in zip(names, values, strict=True)])


def tiles_of(run: InfluenceRun, inverse: Inverse, trust: Trust) -> Iterator[tuple[str, str, str]]:
    """The most important facts.

    Args:
        run: complete.
        inverse: that it took.
        trust: what is said of it.

    Yields:
        Names, values, and where on the page to read on.
    """
    plan, damping = run.plan, run.damping.values()
    yield "method", inverse.name, "run"
    yield "training samples", f"{plan.n:,}", "suspects"
    yield f"{query_name(run)}s", f"{plan.m:,}", "queries"
    yield f"blocks, {plan.n_parameters:,} parameters", f"{len(damping):,}", "blocks"
    if inverse.is_damped:
        yield "damping λ", _span(min(damping), max(damping)), "blocks"
    yield trust.measure, trust.value, "trust"
    yield "computed in", _duration(sum(run.attrs["seconds"].values())), "run"


def _cut(fact: str) -> str:
    if len(fact) <= LONGEST:
        return fact
    return f"{fact[:LONGEST]}… (cut here; {len(fact):,} characters, see `pydvl-datainf info`)"


def _span(low: float, high: float) -> str:
    return f"{low:.1e}" if low == high else f"{low:.1e} – {high:.1e}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _of(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole else f"{part:,} of {whole:,}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {_plural(number, what)}"


def _plural(number: int, what: str) -> str:
    return what if number == 1 else f"{what}s"
