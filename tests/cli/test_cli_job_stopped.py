"""`pydvl-datainf run`: jobs that stop or fail on the way, what they say, and how they go on."""

import re

import numpy as np
import pytest

from commands import done, failed, invoke
from jobs import changed
from pydvl_datainf import InfluenceRun, StoreError
from pydvl_datainf.jobfile import texts
from pydvl_datainf.runner import tasks

pytestmark = pytest.mark.slow


def lines_on_a_terminal(text):
    return re.split(r"[\r\n]", text)


def test_an_error_does_not_stand_on_the_line_of_a_bar(folder, monkeypatch):
    job = (folder / "job.yaml").read_text()
    changed(folder, columns={"prompt": "question"})
    stderr = failed(2, "run", folder / "job.yaml")
    assert "tokenising test data" in stderr  # the premise
    assert any(line.startswith("Error: ") for line in lines_on_a_terminal(stderr))

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    (folder / "job.yaml").write_text(job)
    monkeypatch.setattr(tasks, "write_piece", fails)
    stderr = failed(1, "run", folder / "job.yaml")
    assert any(line.startswith("Error: [Errno 28]") for line in lines_on_a_terminal(stderr))


def test_what_a_job_left_unfinished_names_the_command(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "write_piece", stopping)
    assert invoke("run", folder / "job.yaml", "--no-progress").exit_code == 130
    again = "un its job again (pydvl-datainf run JOB.yaml)"
    for command in (["top"], ["report", "-o", folder / "a.html"], ["info", "--check"]):
        message = failed(1, command[0], folder / "out.zarr", *command[1:])
        assert f"R{again} to go on." in message
        assert "run_influences" not in message
    assert f"r{again}" in done("info", folder / "out.zarr")


def test_a_failure_of_a_job_names_the_command(folder, monkeypatch):
    def fails(*arguments):
        raise StoreError("Damaged. Call run_influences again with the same arguments to go on.")

    monkeypatch.setattr(tasks, "write_piece", fails)
    message = failed(1, "run", folder / "job.yaml", "--no-progress")
    assert "Damaged. Run its job again (pydvl-datainf run JOB.yaml) to go on." in message


def test_ctrl_c_before_the_run(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(texts, "records_of", stopping)
    assert invoke("run", folder / "job.yaml").exit_code == 130


def test_a_stopped_run_goes_on(folder, monkeypatch):
    changed(folder, rows="recompute")
    done("run", folder / "job.yaml", "--no-progress", "--out", folder / "whole.zarr")
    scores, calls = tasks.write_scores, []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores(*arguments)

    monkeypatch.setattr(tasks, "write_scores", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert "the same command goes on; the pass over" in result.output
    assert not InfluenceRun(folder / "out.zarr").is_complete
    monkeypatch.undo()
    done("run", folder / "job.yaml", "--no-progress")
    whole, resumed = (InfluenceRun(folder / f"{name}.zarr") for name in ("whole", "out"))
    assert np.array_equal(whole.scores[...], resumed.scores[...])


@pytest.mark.parametrize(
    ("rows", "told", "again"),
    [
        ("memory", "are gone: those that are still needed, 20 at most, are computed again", 20),
        ("zarr", "the training gradients on disk are not computed again", 0),
    ],
)
def test_a_stop_tells_what_is_computed_again(folder, monkeypatch, rows, told, again):
    """And that is what is: beside the gradients of 4 + 4 test and 20 training samples."""

    def stopping(*arguments):
        raise KeyboardInterrupt

    changed(folder, rows=rows)
    monkeypatch.setattr(tasks, "write_piece", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert told in result.output
    monkeypatch.undo()
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == 28 + again


def test_a_stop_before_there_is_a_run_says_so(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "describe", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert "before there was anything of the result" in result.output


def test_a_run_that_fails_keeps_what_it_has(folder, monkeypatch):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks, "write_piece", fails)
    assert "No space left" in failed(1, "run", folder / "job.yaml", "--no-progress")
    monkeypatch.undo()
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == 24
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").is_complete
