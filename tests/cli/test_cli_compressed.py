"""Jobs with compressed rows."""

import pytest

from commands import done, failed
from jobs import changed
from pydvl_datainf import InfluenceRun

pytestmark = pytest.mark.slow


def test_a_job_compresses_rows_and_tells_of_it(folder):
    changed(folder, rows="compressed", rank=4, basis_sample=6, self_influence=True, method="exact")
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    blocks = 8
    assert f"Rows kept on disk, {4 * blocks} numbers of a sample in half precision" in shown
    assert "256, in 8 blocks" in shown
    assert "in 8 blocks of 256 parameters" in done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    assert run.attrs["fingerprint"]["compression"]["rank"] == 4
    assert run.plan.n_parameters == 4 * blocks
    shown = done("info", folder / "out.zarr", "--check")
    assert "Parameters in them 256" in shown
    assert "Training rows kept yes, of each block 4 coordinates at most" in shown
    low, high = min(run.energy.values()), max(run.energy.values())
    assert f"Energy in these, of the blocks {low:.1%} to {high:.1%}" in shown
    assert "Self-influences yes, of coordinates alone" in shown
    error = run.compression_error
    told = f"error {error.score_error:.2g}, rank correlation {error.rank_correlation:.3f}"
    assert f"Influences against those of whole rows, on a sample relative {told}" in shown
    done("report", folder / "out.zarr", "-o", folder / "report.html")
    assert "each block 4 coordinates at most" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rows": "compressed", "method": "ekfac"}, "method ekfac needs whole rows; let 'rows'"),
        ({"rank": 3}, "'rank' is that of compressed rows; let 'rows' be compressed"),
        ({"rows": "zarr", "basis_sample": 3}, "'basis_sample' is that of compressed rows"),
        ({"basis_seed": 3}, "'basis_seed' is that of compressed rows"),
        ({"rows": "compressed", "rank": 0}, "'rank' must"),
    ],
)
def test_jobs_that_do_not_go_together(folder, fields, told):
    changed(folder, **fields)
    assert told in failed(2, "run", folder / "job.yaml", "--no-progress")
