"""Jobs whose compressed rows keep as many numbers as their energy asks for."""

import pytest

from pydvl_datainf import JobError
from pydvl_datainf.jobfile.reading import read_job

MINIMAL = """\
task: causal-lm
model: models/base
train: train.jsonl
test: test.jsonl
out: influences.zarr
"""


def job_of(folder, text):
    (folder / "job.yaml").write_text(MINIMAL + text, encoding="utf-8")
    return read_job(folder / "job.yaml", {})


def test_ranks_may_be_chosen(tmp_path):
    job = job_of(tmp_path, "rows: compressed\nrank: auto\nbasis_sample: 9\n")
    assert (job.rank, job.as_told()["rank"]) == ("auto", "auto")
    assert job_of(tmp_path, "rows: compressed\nrank: 3\n").rank == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: auto\n", "'rank' is that of compressed rows; let 'rows' be compressed"),
        ("rows: compressed\nrank: all\n", "'rank' must be 'auto' or"),
        ("rows: compressed\nrank: 0\n", "'rank' must be 'auto' or greater than 0; got 0"),
    ],
)
def test_other_ranks_are_refused(tmp_path, text, message):
    with pytest.raises(JobError, match=message):
        job_of(tmp_path, text)
