"""Chooses how a run is cut, so that our arrays in one process fit in memory."""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

from pydvl_datainf.errors import PlanError
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.runner.sizing import Needs, RunSize, needs_of, rows_decoded, self_bytes

MOST_SPANS = 64
MOST_QUERIES = 512  # in a tile
MOST_TRAIN = 4096  # in a tile
MOST_PIECES = 16  # but for more that memory wants: enough for many workers to share
LEAST_SHARE = 256  # of what may be held, what a piece holds at least: files of less cost more
CHUNK_BYTES = 2**24  # of one chunk of vectors, at most
CHUNK_SHARE = 64  # of the memory, what a chunk takes at most; and 2**16 at least
HELD_SHARE = 2  # of the memory, what the rows of a piece take, at most
TRANSIT_SHARE = 16  # of the memory, what is on its way to or from the store takes
PART = 4  # numbers of a stored row, in half precision, take as much as a part of a score


def make_plan(
    asked: RunSize,
    *,
    memory: int,
    rows: str,
    batch_size: int | None = None,
    tile: tuple[int | None, int | None] = (None, None),
    pieces: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Chooses the sizes so that our arrays in one process fit in `memory`.

    Args:
        asked: the size of what is asked.
        memory: bytes.
        rows: "memory", "zarr" or "recompute".
        batch_size: the largest number of samples in one gradient computation; None = the longest
            batch.
        tile: (queries, training samples) in a tile; None = chosen.
        pieces: as stored rows are cut; None = chosen.

    Returns:
        The plan.

    Raises:
        PlanError: if a tile is not positive, or nothing fits.
    """
    sides = [_checked_tile(size, name) for size, name in zip(tile, _SIDES, strict=True)]
    fitted = _fitted(asked, memory, rows, batch_size, sides, pieces)
    if fitted is None:
        works = partial(_fitted, asked, rows=rows, size=batch_size, tile=sides, pieces=pieces)
        raise PlanError(_too_few(asked, memory, rows, sides, _smallest(works, memory)))
    return fitted


def _fitted(asked: RunSize, memory: int, *settings: Any, **named: Any) -> Plan | None:
    """A plan for this memory, or for less: more of it makes larger pieces, which may not fit."""
    attempts = (_planned(asked, memory * k // 16, *settings, **named) for k in range(16, 3, -1))
    return next((plan for plan in attempts if plan is not None), None)


def _planned(
    asked: RunSize,
    memory: int,
    rows: str,
    size: int | None,
    tile: Sequence[int | None],
    pieces: Sequence[Sequence[int]] | None,
) -> Plan | None:
    """The plan, or None where memory is too small for one."""
    given, memory = memory, memory - memory // TRANSIT_SHARE - asked.moments
    test_tile, train_tile = tile
    test_tile = None if test_tile is None else min(test_tile, asked.m)
    at_least = 16 * asked.each * asked.gradient
    step = min(asked.longest, size or asked.longest, max(1, memory // at_least))
    train_tile = min(train_tile or _train_tile(asked, memory, step), asked.n)
    held, is_cut = memory // HELD_SHARE, pieces is None and rows == "zarr"
    if pieces is None:
        pieces = _cut(asked, held) if rows == "zarr" else [(len(asked.widths), sum(asked.widths))]
    step = min(step, train_tile)
    needed = partial(needs_of, asked, rows, pieces, test_tile or 0, train_tile, held=held)
    step, room, most = _step_that_fits(needed, memory, step, test_tile or 1)
    if most < (test_tile or 1):
        finer = is_cut and len(pieces) < len(asked.widths)
        single = [(1, width) for width in asked.widths]
        return _planned(asked, given, rows, size, tile, single) if finer else None
    test_tile, group_tiles = _queries_at_once(asked, most, test_tile, len(pieces), memory)
    tiles = ceil(asked.n / train_tile)
    spans = min(tiles, MOST_SPANS, max(4, asked.n // (group_tiles * test_tile)))
    chunk_bytes = min(CHUNK_BYTES, max(2**16, memory // CHUNK_SHARE))
    widest = max(width for _, width in pieces)
    return Plan(
        n=asked.n,
        m=asked.m,
        n_parameters=sum(asked.widths),
        pieces=tuple(map(tuple, pieces)),
        test_tile=test_tile,
        train_tile=train_tile,
        group_tiles=group_tiles,
        span_tiles=ceil(tiles / spans),
        step=step,
        chunk=rows_decoded(asked, train_tile, held) if rows == "zarr" else step,
        held=held if rows == "zarr" else max(1, room // 2),
        columns=_even(widest, max(1, chunk_bytes // (test_tile * asked.precision))),
        part=max(256, 4 * asked.m, ceil(asked.m_samples / MOST_SPANS)),
        self_tiles=max(1, room // (train_tile * self_bytes(asked, step))),
        rows=rows,
    )


def _step_that_fits(
    needed: Callable[[int], Needs], memory: int, step: int, least: int
) -> tuple[int, int, int]:
    """Halves the samples in a gradient computation until so many queries fit, or it has one.

    Args:
        needed: the needs of a step.
        memory: bytes.
        step: samples, at most.
        least: queries.

    Returns:
        The step, the bytes that it leaves to queries, and how many queries these are.
    """
    while True:
        needs = needed(step)
        room = memory - needs.fixed
        most = room // needs.query if room > 0 and memory >= needs.tile else 0
        if most >= least or step == 1:
            return step, room, most
        step //= 2


def _queries_at_once(
    asked: RunSize, most: int, test_tile: int | None, pieces: int, memory: int
) -> tuple[int, int]:
    """How many queries make a tile, and how many tiles a group, where at most so many fit."""
    if pieces > 1 and not asked.by_block:
        most = min(most, max(test_tile or 1, sum(asked.widths) // (PART * pieces)))
    if test_tile is None:
        at_once = min(most, asked.m, MOST_QUERIES, max(1, memory // (4 * asked.vector)))
        test_tile = ceil(asked.m / ceil(asked.m / at_once))
    return test_tile, max(1, min(most // test_tile, ceil(asked.m / test_tile)))


def _smallest(works: Callable[..., Plan | None], least: int) -> int:
    """The smallest memory that works, beyond one that does not."""
    most = 2 * least
    while works(memory=most) is None:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if works(memory=middle) is None else (least, middle)
    return most


def fits_at_once(asked: RunSize, memory: int) -> bool:
    """Whether all training rows fit in memory together with the vectors of all queries.

    Args:
        asked: the size of what is asked.
        memory: bytes.

    Returns:
        True if rows="memory" leads to one group of queries.
    """
    try:
        return len(make_plan(asked, memory=memory, rows="memory").groups) == 1
    except PlanError:
        return False


_SIDES = ("test", "train")


def _checked_tile(size: int | None, side: str) -> int | None:
    if size is not None and (type(size) is not int or size < 1):
        raise PlanError(
            f"The {side} side of a tile must be a positive number or None, got {size!r}."
        )
    return size


def _train_tile(asked: RunSize, memory: int, step: int) -> int:
    """About 1/32 of the samples: what a stop loses at most; whole pieces, and rows that fit."""
    wanted = min(max(ceil(asked.n / 32), 16 * (asked.top_k or 0)), MOST_TRAIN)
    fitting = max(1, memory // (8 * asked.each * asked.row))
    return max(1, min(ceil(wanted / step) * step, fitting // step * step or fitting))


def _even(total: int, most: int) -> int:
    """The length of parts, at most `most`, that are as even as can be: a short one is padded."""
    return ceil(total / ceil(total / most))


def _cut(asked: RunSize, held: int) -> list[tuple[int, int]]:
    """Pieces of neighbouring blocks whose stored rows can be held, if those of a block can."""
    D, most = sum(asked.widths), held // (2 * asked.rows)
    # Several, if the parts of scores that they leave on disk take little beside the rows there,
    # and if their own rows are worth the files of each training tile.
    worth = 2 * asked.rows * D * LEAST_SHARE // max(1, held)
    few = max(1, min(MOST_PIECES, D // (4 * PART * asked.m), worth))
    limit = max(1, min(most, ceil(D / few)))
    found: list[tuple[int, int]] = []
    for width in asked.widths:
        if found and found[-1][1] + width <= limit:
            found[-1] = found[-1][0] + 1, found[-1][1] + width
        else:
            found.append((1, width))
    return found


def _too_few(
    asked: RunSize, memory: int, rows: str, tile: Sequence[int | None], smallest: int
) -> str:
    """What to say of it."""
    own = asked.method.bytes(asked.n, tile[0] or 1, max(asked.widths))
    rows = "compressed" if asked.bases else rows  # which are kept as others in a store
    return (
        f"{memory:,} bytes of memory are too few: a gradient takes {asked.gradient:,}, and with "
        f"rows={rows!r} the smallest that works is memory={smallest:,}"
        + (f", for tiles of {tuple(tile)}." if any(tile) else ".")
        + (_MOMENTS.format(asked.moments) if asked.moments > smallest // 4 else "")
        + (_OWN.format(own, asked.method.name) if own > smallest // 4 else "")
        + (_LEARNING.format(asked.learning) if asked.learning > smallest // 4 else "")
        + (_BEHIND.format(asked.side_moments) if asked.side_moments > smallest // 4 else "")
    )


_MOMENTS = " Of these the second moments of layers take {0:,}."
_LEARNING = (
    " Of these learning the bases takes {0:,}: a smaller basis_sample or rank needs less memory."
)
_BEHIND = " Of these the moments that side bases follow from take {0:,}."
_OWN = " Of these the {1} inverse takes {0:,} in the widest block."
