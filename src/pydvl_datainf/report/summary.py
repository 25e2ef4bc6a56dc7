"""A run in short: the most important facts, and how much of it a page holds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.influences import MOST_SCORES, Tops, count_by_block, count_scores
from pydvl_datainf.report.labels import MOST as MOST_LABELS
from pydvl_datainf.report.samples import Samples, Side
from pydvl_datainf.report.thumbnails import Thumbnails
from pydvl_datainf.report.trust import Trust
from pydvl_datainf.results.facts import count_parameters, query_name, run_facts
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.terminal import visible

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
        uncounted: columns of labels that are not counted, with the number of different ones.
    """

    run: InfluenceRun
    bounds: Bounds
    tops: Tops
    samples: Mapping[Side, Samples]
    limit: int
    thumbnails: Thumbnails
    uncounted: Mapping[str, int]

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
        yield from self._cut_off()
        yield from self._not_gathered()

    def _cut_off(self) -> Iterator[str]:
        """What was asked for, and is more than there is or than a page takes."""
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
            yield (
                f"{_count(missing, 'image')} that cannot be read, or lie outside the folder "
                "--images, from which their paths are meant."
            )
        if too_much:
            yield f"{_count(too_much, 'image')}, so that the page does not become too large."

    def _not_gathered(self) -> Iterator[str]:
        """Numbers of the run that are too many, or elsewhere."""
        plan, count = self.run.plan, count_scores(self.run)
        if count > MOST_SCORES:
            yield (
                f"median influences: {count:,} influences are more than the {MOST_SCORES:,} that a "
                "page is made from."
            )
        by_block = count_by_block(self.run)
        if by_block > MOST_SCORES:
            yield (
                f"shares of blocks in the influences: {by_block:,} influences by block are more "
                f"than the {MOST_SCORES:,} that a page is made from."
            )
        if not self.run.rows_are_followed:
            rows_in = place_name(self.run.attrs["rows_in"])
            yield (
                f"self-influences and training losses: those of '{rows_in}', whose rows this run "
                "used, are not in a folder beside it (--follow-rows reads them)."
            )
        for name, different in self.uncounted.items():
            yield (
                f"counts by {name}: {different:,} different labels among {plan.n:,} training "
                f"samples; at most {MOST_LABELS}, of two samples each on average, are counted."
            )


def store_name(run: InfluenceRun) -> str:
    """What the store is called: a folder without its path, which is nobody's business elsewhere."""
    store = run.store
    if store.path is not None:
        return store.path.resolve().name
    place = store.location
    return place_name(str(getattr(place, "path", place)))


def place_name(place: str) -> str:
    """The last part of a path or URL: what stands before it may be a password or a private folder.

    Args:
        place: of a store.

    Returns:
        A name, without what follows a question mark or number sign in a URL.

    Example:
        >>> place_name("/home/me/run.zarr"), place_name("s3://key:secret@host/a/run.zarr?token=b")
        ('run.zarr', 'run.zarr')
    """
    if "://" not in place:
        return Path(place).name
    address = re.split("[?#]", place, maxsplit=1)[0].rpartition("://")[2].rstrip("/")
    host, _, path = address.partition("/")
    name = (path.rpartition("/")[2] or host).rpartition("@")[2]
    return name if name and ":" not in name else "a store"  # no half of a password


def facts_of(run: InfluenceRun) -> Iterator[Facts]:
    """All that `pydvl-datainf info` shows, of other stores only their names.

    Args:
        run: complete.

    Yields:
        Facts under their titles.
    """
    for title, facts in run_facts(run, place=place_name).items():
        yield Facts(title, [(visible(name), _cut(visible(fact))) for name, fact in facts.items()])


def tiles_of(
    run: InfluenceRun, damping: Mapping[str, float], trust: Trust
) -> Iterator[tuple[str, str, str]]:
    """The most important facts.

    Args:
        run: complete.
        damping: λ of each block, where it has one.
        trust: what is said of it.

    Yields:
        Names, values, and where on the page to read on.
    """
    plan, values = run.plan, damping.values()
    yield "method", run.attrs["fingerprint"]["method"], "run"
    yield "training samples", f"{plan.n:,}", "suspects"
    yield f"{query_name(run)}s", f"{plan.m:,}", "queries"
    yield f"blocks, {count_parameters(run):,} parameters", f"{len(run.widths):,}", "blocks"
    if values:
        yield "damping λ", _span(min(values), max(values)), "blocks"
    yield trust.measure, trust.value, "trust"
    yield "computed in", _duration(sum(run.attrs["seconds"].values())), "run"


def _cut(fact: str) -> str:
    if len(fact) <= LONGEST:
        return fact
    return f"{fact[:LONGEST]}… (cut here; {len(fact):,} characters, see `pydvl-datainf info`)"


def _span(low: float, high: float) -> str:
    return scientific(low) if low == high else f"{scientific(low)} – {scientific(high)}"


def scientific(value: float) -> str:
    """A positive number with two digits as people write it.

    Args:
        value: positive.

    Returns:
        A text without blanks, which is broken nowhere.

    Example:
        >>> scientific(0.00012), scientific(0.25), scientific(3e7)
        ('1.2×10⁻⁴', '0.25', '3.0×10⁷')
    """
    if 0.01 <= value < 1000:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}×10{str(int(exponent)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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
