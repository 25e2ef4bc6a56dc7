"""Jobs whose compressed rows are behind side bases."""

import pytest

from commands import done, failed
from jobs import changed
from pydvl_datainf import InfluenceRun

pytestmark = pytest.mark.slow


def test_a_job_keeps_rows_behind_side_bases_and_tells_of_it(folder):
    changed(folder, rows="compressed", rank=4, basis_sample=6, sides=0.5, method="exact")
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    kept = "kept on disk, 32 numbers of a sample in half precision, behind side bases of 8 blocks"
    assert kept in shown
    count = int(shown.partition("Gradients ")[2].partition(",")[0])
    done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    assert count == run.attrs["gradients"]
    assert len(run.side_widths) == 8
    assert run.metadata("run")["job"]["sides"] == 0.5
    shown = done("info", folder / "out.zarr", "--check")
    behind = "each block 4 coordinates at most, behind 0.5 of the outputs and inputs in 8 of them"
    assert behind in shown
    error = run.compression_error
    told = f"error {error.score_error:.2g}, rank correlation {error.rank_correlation:.3f}"
    assert f"Influences against those of rows behind side bases, on a sample relative {told}" in (
        shown
    )
    ranks = f"with those behind side bases: {error.rank_correlation:.3f}, on a sample."
    assert ranks in done("top", folder / "out.zarr")


def test_a_job_without_wide_layers_tells_so(folder):
    changed(folder, rows="compressed", rank=4, basis_sample=6, sides=0.01)
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert "in half precision, without side bases: no layer is wide enough" in shown
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").side_widths == {}
    shown = done("info", folder / "out.zarr")
    assert "4 coordinates at most, without side bases: no layer is wide enough" in shown


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sides": 0.5}, "'sides' is that of compressed rows; let 'rows' be compressed"),
        ({"rows": "compressed", "sides": 1.5}, "'sides' must be less than 1; got 1.5"),
        ({"rows": "compressed", "rank": "auto", "sides": 0.5}, "rank auto looks at whole gradien"),
    ],
)
def test_jobs_that_do_not_go_together(folder, fields, told):
    changed(folder, **fields)
    assert told in failed(2, "run", folder / "job.yaml", "--no-progress")
