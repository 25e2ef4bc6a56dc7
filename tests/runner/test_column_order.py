"""Columns of samples stay in the order in which they were given."""

from io import StringIO

from rich.console import Console

from pydvl_datainf import InfluenceRun, run_influences, sum_runs
from pydvl_datainf.report.columns import ordered
from pydvl_datainf.tables import mean_tables, top_tables
from small_runs import N, build, loader, run

GIVEN = ["prompt", "answer", "zone", "author", "level"]
COLUMNS = {name: [f"{name} {k}" for k in range(N)] for name in GIVEN[:4]} | {
    "level": list(range(N))
}


def header(table):
    """The names of the columns of a table, as a terminal shows them."""
    told = StringIO()
    Console(file=told, width=400).print(table)
    return next(line.split() for line in told.getvalue().splitlines() if "prompt" in line)


def test_a_store_keeps_the_order_of_columns(tmp_path):
    run(tmp_path / "run.zarr", metadata={"train": COLUMNS})
    opened = InfluenceRun(tmp_path / "run.zarr")
    assert list(opened.metadata("train")) == GIVEN
    assert list(opened.metadata("train")) != sorted(GIVEN)  # premise
    assert ordered(opened.metadata("train")) == GIVEN
    shown = ["influence", "id", "level", "prompt", "answer", "zone", "author"]
    assert header(next(mean_tables(opened, 2, ["helpful"]))) == shown
    _, ranking = top_tables(opened, 0, 2, ["helpful"])
    assert header(ranking) == shown


def test_another_order_is_another_one(tmp_path):
    turned = dict(reversed(COLUMNS.items()))
    made = run(tmp_path / "run.zarr", metadata={"train": turned})
    assert list(made.metadata("train")) == GIVEN[::-1]


def test_further_queries_and_sums_keep_the_order(tmp_path):
    first = run(tmp_path / "first.zarr", rows="zarr", metadata={"train": COLUMNS})
    query = run_influences(build(), loader(4, 9, 3), first, tmp_path / "query.zarr", progress=False)
    assert list(query.metadata("train")) == GIVEN
    second = run(tmp_path / "second.zarr", rows="zarr", metadata={"train": COLUMNS})
    total = sum_runs([first, second], tmp_path / "sum.zarr", progress=False)
    assert list(InfluenceRun(total.store.location).metadata("train")) == GIVEN
