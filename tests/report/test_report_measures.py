"""A column of numbers of training samples is declared once."""

import numpy as np
import pytest
from rich.console import Console

import small_runs
from pydvl_datainf.report import write_report
from pydvl_datainf.results.listing import rankings_by, records_of
from pydvl_datainf.results.measures import MEASURES, Measure
from pydvl_datainf.tables import mean_tables
from report_pages import Page

VALUES = np.sin(np.arange(small_runs.N))


@pytest.fixture
def declared(monkeypatch):
    norm = Measure(
        "half norm",
        lambda run: VALUES,
        "the largest half norm of {queries}",
        kind="number",
        is_suspicion=True,
        beside_influences=True,
    )
    monkeypatch.setitem(MEASURES, "norm", norm)


@pytest.mark.usefixtures("declared", "without_pictures")
def test_tables_records_and_the_report_have_what_is_declared(tmp_path):
    run = small_runs.run(tmp_path / "run.zarr")
    order = np.argsort(-VALUES)
    records = records_of(run, rankings_by(run, 3, ["harmful"], "norm"))
    assert [record["half_norm"] for record in records] == VALUES[order[:3]].tolist()
    console = Console(width=100)
    with console.capture() as captured:
        console.print(*mean_tables(run, 3, ["harmful"], "norm"))
    assert "The 3 training samples with the largest half norm" in captured.get()
    assert f"{VALUES[order[0]]:.4g}" in captured.get()
    page = Page(write_report(run, tmp_path / "report.html"))
    assert page.data["measures"]["half norm"] == pytest.approx(VALUES, rel=1e-9)
    assert page.data["kinds"]["half norm"] == "number"
    assert "half norm" in page.data["beside"]
    assert "the largest half norm of test samples." in page.text
