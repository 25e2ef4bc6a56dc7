"""A job with compressed rows whose ranks are chosen, from its dry run to its report."""

import pytest

from commands import done
from jobs import changed
from pydvl_datainf import InfluenceRun

pytestmark = pytest.mark.slow


def test_a_job_chooses_ranks_and_tells_them(folder):
    changed(folder, rows="compressed", rank="auto", basis_sample=6, method="exact")
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    most = 6 * 8  # of each of eight blocks as many as samples, at most
    told = f"{most} numbers of a sample in half precision, at most: fewer are chosen"
    assert f"Rows kept on disk, {told}" in shown
    done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    low, high = min(run.ranks.values()), max(run.ranks.values())
    assert run.plan.n_parameters == sum(run.ranks.values()) < most
    told = f"Training rows kept yes, of each block {low} to {high} coordinates (median "
    assert told in done("info", folder / "out.zarr", "--check")
    done("report", folder / "out.zarr", "-o", folder / "report.html")
    assert f"each block {low} to {high} coordinates" in (folder / "report.html").read_text()
    done("run", folder / "job.yaml", "--no-progress")  # a complete run is left as it is
