"""How commands end: in a few lines, or with an error on a line of its own."""

import shlex
import sys

import pytest
from tqdm.auto import tqdm

import small_runs
from commands import failed, invoke
from pydvl_datainf import InfluenceRun
from pydvl_datainf.cli import main, running
from pydvl_datainf.results import listing
from pydvl_datainf.results.facts import brief_facts
from pydvl_datainf.results.store import Store


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_ends_in_ten_lines(folder):
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 10
    run = InfluenceRun(folder / "out.zarr")
    first = "Influences of 20 training samples on 4 test samples by DataInf, in 8 blocks of"
    assert lines[0] == f"{first} {run.plan.n_parameters:,} parameters."
    low, high = min(run.damping.values()), max(run.damping.values())
    assert lines[1] == f"Damping λ: {low:.2e} to {high:.2e}."
    rank = run.approximation_error.rank_correlation
    assert lines[2] == f"Rank correlation with the exact inverse: {rank:.2f}."
    assert f"{run.attrs['gradients']:,} gradients" in lines[3]
    assert lines[4] == f"Written to {folder / 'out.zarr'}. To go on:"
    assert [line.split()[1] for line in lines[5:]] == ["top", "top", "select", "report", "info"]
    assert lines[7].split("  #")[0].endswith("out.zarr --drop-harmful 5% -o next.jsonl")


def test_what_is_told_to_go_on_with_can_be_typed(tmp_path, capsys):
    running._tell_commands(Store(tmp_path / "a b.zarr"), "next.csv", asks=True)
    lines = capsys.readouterr().out.splitlines()
    typed = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [name for name, *_ in typed] == ["top", "top", "ask", "select", "report", "info"]
    for name, *arguments in typed:
        assert arguments[0] == str(tmp_path / "a b.zarr")
        main.commands[name].make_context(name, arguments).close()


def test_what_was_not_compared_is_not_told(tmp_path):
    lines = list(brief_facts(small_runs.run(tmp_path / "run.zarr")))
    assert len(lines) == 3
    assert lines[0].startswith("Influences of 23 training samples on 7 test samples by DataInf")
    assert not any("exact" in line for line in lines)


def test_an_error_stands_on_a_line_of_its_own(tmp_path, monkeypatch):
    small_runs.run(tmp_path / "run.zarr")
    bars = []

    def begun(*arguments):
        bars.append(tqdm(range(5), "a bar", leave=False, file=sys.stderr))
        bars[0].update(2)
        raise OSError("disk gone")

    monkeypatch.setattr(listing.InfluenceRun, "mean_influence", begun)
    message = failed(1, "top", tmp_path / "run.zarr")
    shown, _, error = message.rpartition("\r")  # after which the bar's line is blank
    assert "a bar" in shown
    assert error == "Error: disk gone\n"
    assert bars[0].disable  # it is closed, and nothing draws it again
