"""The table of the arrays of a run (shape, chunks, dtype), as its plan, once cut, has them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.arrays import BASES, MOMENTS, SIDE_BASES, Layout
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.record import (
    APPROXIMATION,
    COMPRESSION,
    EXTRAS,
    OF_ONE_INVERSE,
    SELF_INFLUENCE,
    TRAINING_LOSS,
    comparison_said,
    compression_said,
    faults,
    is_sum,
)
from pydvl_datainf.results.row_sets import row_sets, rows_each
from pydvl_datainf.results.stored import Stored

End: TypeAlias = Literal["helpful", "harmful"]
ENDS: tuple[End, End] = ("helpful", "harmful")
ID_CHUNK = 2**16


# Arrays


def arrays_of(
    plan: Plan,
    blocks: int,
    dtype: str,
    *,
    by_block: bool,
    top_k: int | None,
    stores_rows: bool,
    columns: Mapping[str, str],
    moments: Mapping[int, int] | None = None,
    bases: Mapping[int, tuple[int, int]] | None = None,
    sides: Mapping[int, tuple[int, int, int, int]] | None = None,
    curvature: int = 0,
) -> dict[str, Layout]:
    """The arrays of a run, but for intermediate ones.

    Args:
        plan: how it is cut.
        blocks: L, how many there are.
        dtype: of gradients and scores.
        by_block: whether each block has scores of its own.
        top_k: how many scores are kept at either end; None = all.
        stores_rows: whether training rows are kept in the store.
        columns: data type of each column of ids and metadata.
        moments: for blocks by number, entries of the moments of their layer that are kept.
        bases: where rows are compressed, (r, d_l) of the blocks by number that have a basis.
        sides: o, a, i and b of the blocks by number that have side bases.
        curvature: rows of each training sample that only the inverse is made of.

    Returns:
        Layouts by name, `EXTRAS` among them.
    """
    n, r, L = plan.n, plan.train_tile, blocks
    tables = {
        "damping": Layout((L,), (L,), "float64", ("block",)),
        "mean_influence": Layout((n,), (r,), "float64", ("train",)),
        "block": Layout((L,), (ID_CHUNK,), "string", ("block",)),
        "width": Layout((L,), (ID_CHUNK,), "int64", ("block",)),
        SELF_INFLUENCE: Layout((n,), (r,), dtype, ("train",)),
        TRAINING_LOSS: Layout((n,), (r,), dtype, ("train",)),
        APPROXIMATION: Layout((2, L), (2, L), "float64", ("measure", "block")),
    }
    for rows in row_sets(curvature):
        size, chunk = rows.each * n, rows.each * r
        tables[rows.norms] = Layout((size, L), (chunk, L), "float64", (rows.axis, "block"))
        if stores_rows:
            tables[rows.scales] = Layout((size, L), (chunk, L), dtype, (rows.axis, "block"))
            for p, (_, width) in enumerate(plan.pieces):
                shape, cut, axes = (size, width), (chunk, width), (rows.axis, "parameter")
                tables[rows.name(p)] = Layout(shape, cut, "float16", axes)
    for b, entries in (moments or {}).items():
        tables[moments_name(b)] = Layout((entries,), (entries,), "float64", None)
    if bases is not None:
        tables["energy"] = Layout((L,), (L,), "float64", ("block",))
        tables["compression_error"] = Layout((2,), (2,), "float64", ("measure",))
        tables["outside_norms"] = Layout((n, L), (r, L), "float64", ("train", "block"))
        for b, shape in bases.items():
            tables[basis_name(b)] = Layout(shape, shape, dtype, ("direction", "parameter"))
    for b, (o, a, i, k) in (sides or {}).items():
        tables[sides_name(b)] = Layout((o * a + i * k,), (o * a + i * k,), dtype, None)
    tables |= _arrays_of_scores(plan, L, dtype, by_block=by_block, top_k=top_k)
    lengths = {"test": plan.m, "train": n}
    for name, kind in columns.items():
        side = name.partition("_")[0]
        tables[name] = Layout((lengths[side],), (ID_CHUNK,), kind, (side,))
    return tables


def _arrays_of_scores(
    plan: Plan, L: int, dtype: str, *, by_block: bool, top_k: int | None
) -> dict[str, Layout]:
    """Scores, of L blocks or of their sum, or the top of them."""
    n, m, t, r = plan.n, plan.m, plan.test_tile, plan.train_tile
    if top_k is not None:
        k, e, names = min(top_k, n), len(ENDS), ("test", "end", "rank")
        return {
            "top": Layout((m, e, k), (t, e, k), "int64", names),
            "top_scores": Layout((m, e, k), (t, e, k), dtype, names),
            "end": Layout((e,), (ID_CHUNK,), "string", ("end",)),
        }
    if by_block:
        return {"scores": Layout((m, L, n), (t, 1, r), dtype, ("test", "block", "train"))}
    return {"scores": Layout((m, n), (t, r), dtype, ("test", "train"))}


def basis_name(block: int) -> str:
    """The array of the basis of a block."""
    return f"{BASES}/{block}"


def sides_name(block: int) -> str:
    """The array of the side bases of a block: that of outputs, and behind it that of inputs."""
    return f"{SIDE_BASES}/{block}"


def moments_name(block: int) -> str:
    """The array of the second moments of the layer that a block is."""
    return f"{MOMENTS}/{block}"


def moments_of(blocks: Iterable[str], layers: Mapping[str, Sequence[int]]) -> dict[int, int]:
    """For each block that is a layer, by its number, the entries of its moments, A and then S.

    Args:
        blocks: names of all blocks.
        layers: outputs o and inputs i of those that are a layer, and perhaps more.

    Returns:
        i² + o² by number.
    """
    numbers = {block: b for b, block in enumerate(blocks)}
    return {numbers[block]: i**2 + o**2 for block, (o, i, *_) in layers.items()}


def arrays_said(attributes: Mapping[str, Any]) -> dict[str, Layout]:
    """The arrays that a run has by its attributes.

    Args:
        attributes: checked.

    Returns:
        Layouts by name.
    """
    said, plan = attributes["fingerprint"], Plan.from_attributes(attributes["plan"])
    tables = arrays_of(
        plan,
        len(said["blocks"]),
        said["dtype"],
        by_block=said["by_block"],
        top_k=said["top_k"],
        stores_rows=plan.rows == "zarr" and attributes["rows_in"] is None and not _is_open(said),
        columns=attributes["columns"],
        moments=_moments_said(attributes),
        bases=_bases_said(attributes),
        sides=_sides_said(attributes),
        curvature=rows_each(said) if attributes["rows_in"] is None else 0,
    )
    if not is_sum(attributes):
        return tables
    return {name: layout for name, layout in tables.items() if name not in OF_ONE_INVERSE}


def _moments_said(attributes: Mapping[str, Any]) -> dict[int, int]:
    """Those that a run keeps: a query has none of its own."""
    said = attributes["fingerprint"]
    layers = said.get("layers", {}) if attributes["rows_in"] is None else {}
    return moments_of(said["blocks"], layers)


def _bases_said(attributes: Mapping[str, Any]) -> dict[int, tuple[int, int]] | None:
    """Shapes of the bases that a run keeps: a query has none of its own, nor a sum."""
    said, n = attributes["fingerprint"], attributes["plan"]["n"]
    compression = compression_said(said)
    if compression is None or attributes["rows_in"] is not None or compression.is_open:
        return None
    widths = dict(zip(said["blocks"], said[COMPRESSION]["widths"], strict=True))
    return compression.shapes(widths, n)


def _sides_said(attributes: Mapping[str, Any]) -> dict[int, tuple[int, int, int, int]]:
    """Shapes of the side bases that a run keeps: a query has none of its own, nor a sum."""
    compression = compression_said(attributes["fingerprint"])
    if compression is None or attributes["rows_in"] is not None:
        return {}
    return compression.side_shapes(attributes["fingerprint"]["blocks"])


def _is_open(said: Mapping[str, Any]) -> bool:
    """Whether ranks are not chosen yet, so that nothing is known of rows."""
    compression = compression_said(said)
    return compression is not None and compression.is_open


def column_type(dtype: Any) -> str:
    """The data type of a column by the name that Zarr has for it."""
    return "string" if dtype.kind in "OT" else str(dtype.name)


# Attributes


def opened(store: Stored) -> dict[str, Any]:
    """Reads the attributes of a run, and has what is read checked against them from then on.

    Args:
        store: of the run.

    Returns:
        Its attributes.

    Raises:
        StoreError: if there is no run, or it says what cannot be; names the attribute.
    """
    attributes = store.attributes
    wrong = next(faults(attributes), None)
    if wrong is not None:
        raise StoreError(
            f"The attributes of {store} are damaged, or not those of a run: {wrong}. Put back a "
            "copy of its zarr.json, or make the run anew with overwrite=True."
        )
    store.layouts, store.checksum = arrays_said(attributes), attributes["checksum"]
    store.maker = "sum_runs" if is_sum(attributes) else "run_influences"
    return attributes


def has_extra(store: Stored, name: str) -> bool:
    """Whether one of the arrays that not every run has is there and sound."""
    try:
        return store.is_whole(name) and (name != APPROXIMATION or bool(comparison_in(store)))
    except StoreError:  # damaged metadata
        return False


def extras_in(store: Stored) -> list[str]:
    """Those of the arrays that not every run has that are there and sound."""
    return [name for name in EXTRAS if has_extra(store, name)]


def comparison_in(store: Stored) -> dict[str, Any] | None:
    """What stands beside the comparison with the exact inverse; None if missing or damaged."""
    return comparison_said(store.attributes_of(APPROXIMATION))
