"""`pydvl-datainf info` and `top` on runs in their stores."""

import re
import subprocess
import sys
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from commands import invoke
from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.tasks import blocks
from pydvl_datainf.tables import info_tables, mean_tables
from report_pages import samples

N, M = 12, 5
LONG = "A text with [bold]square[/bold] brackets, " + "and many words " * 20 + "up to its end."


def one_line(text):
    return " ".join(text.split())


def shown(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return one_line(result.stdout)


def refused(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert re.fullmatch(r"Error: .+\n", result.stderr)
    return result.stderr


METADATA = {
    "train": {
        "text": [f"{i}: {LONG}" for i in range(N)],
        "label": ["rotten", "fresh"] * (N // 2),
        "flipped": [i % 5 == 3 for i in range(N)],
        "loss": [0.125 * i for i in range(N - 1)] + [float("nan")],
    },
    "test": {"text": [f"[red]query[/red] \x1b[31m{i}" for i in range(M)], "label": [1, 0, 1, 0, 1]},
    "run": {"purpose": "a [test]"},
}
NAMES = {"train": [f"t{i}" for i in range(N)], "test": [f"q-{i}" for i in range(M)]}


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return DataInfInfluence(model, F.cross_entropy, batch_size=4)


def made(store, **wishes):
    wishes = {"tile": (2, 4), "metadata": METADATA, "progress": False, **wishes}
    return run_influences(build(), samples(M, 2), samples(N, 1), store, **wishes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "plain.zarr"
    made(path, self_influence=True)
    return path


@pytest.fixture(scope="module")
def run(plain):
    return InfluenceRun(plain)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Ids are strings, and only the top is kept."""
    path = tmp_path_factory.mktemp("runs") / "named.zarr"
    made(path, ids=NAMES, top_k=3)
    return path


def stop(*arguments):
    raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped after the scores of one training tile."""
    calls = iter([blocks.write_tiles])
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "write_tiles", lambda *arguments: next(calls, stop)(*arguments))
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "stopped.zarr")
    return tmp_path / "stopped.zarr"


@pytest.fixture
def damaged(tmp_path):
    made(tmp_path / "damaged.zarr")
    chunk = tmp_path / "damaged.zarr/scores/c/1/2"
    content = bytearray(chunk.read_bytes())
    content[9] ^= 1
    chunk.write_bytes(content)
    return tmp_path / "damaged.zarr"


# info


def test_info_tells_what_a_run_holds(plain, run):
    text = shown("info", plain)
    damping = run.damping.values()
    for expected in (
        f"Training samples {N} Test samples {M} Blocks 2",
        "Parameters in them 26",
        f"smallest to largest {min(damping):.2e} to {max(damping):.2e}",
        "Objective torch.nn.functional.cross_entropy",
        "Scores kept all Training rows kept no Self-influences yes",
        "Columns of training samples flipped, label, loss, text",
        "Columns of test samples label, text",
        f"Created {run.attrs['created']}",
        f"torch {torch.__version__}",
        'purpose "a [test]"',
    ):
        assert expected in text


def test_info_tells_what_to_make_of_the_distance_from_the_exact_inverse(tmp_path):
    made(tmp_path / "run.zarr", exact_sample=N)
    pointer = 'What to make of these docs/trust.md, "How far to trust a score"'
    text = shown("info", tmp_path / "run.zarr")
    assert re.search(rf"Rank correlation of influences \S+ .*{pointer}", text)


def test_info_tells_how_far_a_run_is_and_what_it_cost(plain, run):
    text = shown("info", plain)
    assert "Complete yes Chunks of results 9 of 9" in text
    assert f"Gradients computed {N + M}" in text
    for stage, seconds in run.attrs["seconds"].items():
        assert f"Seconds for {stage} {seconds:.1f}" in text
    size = sum(path.stat().st_size for path in plain.rglob("*") if path.is_file())
    assert f"Size on disk {size / 1024:.2f} kiB" in text


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"top_k": 3}, "the 3 most helpful and most harmful for each test sample"),
        ({"by_block": True}, "Scores kept all, of each block"),
        ({"rows": "zarr"}, "Training rows kept yes, in half precision Self-influences no"),
        ({"query_groups": [1, 2, 1, 2, 2], "metadata": None}, f"Test samples {M}, in 2 groups"),
        ({"metadata": None}, "Columns of training samples none Columns of test samples none"),
    ],
)
def test_info_tells_what_was_kept(tmp_path, wishes, expected):
    made(tmp_path / "run.zarr", **wishes)
    assert expected in shown("info", tmp_path / "run.zarr")


def test_info_tells_whose_rows_a_further_query_used(tmp_path):
    parent = made(tmp_path / "parent.zarr", rows="zarr")
    run_influences(build(), samples(3, 7), parent, tmp_path / "query.zarr", progress=False)
    expected = f"Training rows kept those in {tmp_path / 'parent.zarr'}"
    assert expected in shown("info", tmp_path / "query.zarr")


def test_info_lists_the_damping_of_each_block_on_request(plain, run):
    lines = [f"{block} {damping:.3e}" for block, damping in run.damping.items()]
    assert " ".join(lines) in shown("info", plain, "--blocks")
    assert " ".join(lines) not in shown("info", plain)


def test_info_on_a_stopped_run_names_the_remedy(stopped):
    text = shown("info", stopped)
    assert "Complete no Chunks of results 3 of 9 To go on call run_influences" in text
    assert "smallest to largest" in text
    assert "is not complete" in refused("info", stopped, "--check")


def test_info_on_a_run_without_damping_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "write_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "run.zarr")
    assert "smallest to largest not chosen yet" in shown("info", tmp_path / "run.zarr", "--blocks")


def test_check_reads_every_chunk(plain, damaged):
    assert shown("info", plain, "--check").endswith("Every chunk was read and is sound.")
    assert "9 of 9" in shown("info", damaged)  # without --check nobody looks
    assert "1 missing or damaged chunks: scores/c/1/2." in refused("info", damaged, "--check")


def test_check_finds_a_missing_chunk(damaged):
    (damaged / "mean_influence/c/0").unlink()
    message = "2 missing or damaged chunks: mean_influence/c/0, scores/c/1/2."
    assert message in refused("info", damaged, "--check")


def test_a_run_that_is_at_work_may_delete_files_meanwhile(plain, monkeypatch):
    monkeypatch.setattr("os.walk", lambda folder: [(folder, [], ["gone"])])
    assert "Size on disk 0 B" in shown("info", plain)


# top


def rows_of(text):
    """Influences and ids in the order in which they are shown."""
    return re.findall(r"([+-]\d\.\d\de[+-]\d\d) (\w+) ", text)


def expected_rows(ids, influences):
    return [(f"{v:+.2e}", str(i)) for i, v in zip(ids, influences, strict=True)]


def test_top_shows_both_ends_for_a_test_sample(plain, run):
    text = shown("top", plain, "--test", "3", "--k", "4")
    helpful = expected_rows(*run.top(4, 3, "helpful"))
    harmful = expected_rows(*run.top(4, 3, "harmful"))
    assert rows_of(text) == helpful + harmful
    order = ("The test sample id 3 label 0", "4 training samples most helpful", "most harmful")
    assert [text.find(part) for part in order] == sorted(text.find(part) for part in order)
    assert text.find(order[0]) == 0


@pytest.mark.parametrize("most", ["helpful", "harmful"])
def test_top_shows_one_end(plain, run, most):
    text = shown("top", plain, "--test", "0", "--most", most)
    assert rows_of(text) == expected_rows(*run.top(10, 0, most))


def test_top_shows_the_mean_of_all_test_samples_harmful_first(plain, run):
    means = run.mean_influence()
    order = np.argsort(means)
    text = shown("top", plain, "--k", "2")
    chosen = [*order[:2], *order[::-1][:2]]
    assert rows_of(text) == expected_rows(chosen, means[chosen])
    assert text.startswith("The 2 training samples most harmful on average")


def notes(text):
    return re.findall(r"Not \w+, since the influence is not \w+: \w+ of these\.", text)


def test_top_says_which_samples_are_not_what_their_table_is_called(plain, run):
    influences = run.top(N, 0)[1]
    against = int((influences <= 0).sum()), int((influences >= 0).sum())
    assert min(against) > 1
    assert notes(shown("top", plain, "--test", 0, "--k", 1)) == []
    assert notes(shown("top", plain, "--test", 0, "--k", N)) == [
        f"Not helpful, since the influence is not positive: {against[0]} of these.",
        f"Not harmful, since the influence is not negative: {against[1]} of these.",
    ]


def test_where_none_is_helpful_top_says_so(plain, monkeypatch):
    monkeypatch.setattr(InfluenceRun, "mean_influence", lambda run: -np.arange(N) / N)
    text = shown("top", plain, "--k", 2, "--most", "helpful")
    assert notes(text) == ["Not helpful, since the influence is not positive: all of these."]
    assert rows_of(text) == [("+0.00e+00", "0"), (f"{-1 / N:+.2e}", "1")]


def test_top_shows_no_more_than_there_are(plain):
    assert f"The {N} training samples" in shown("top", plain, "--k", 99)
    assert f"The {N} training samples" in shown("top", plain, "--k", 99, "--test", 1)


def test_top_finds_ids_that_are_strings(named):
    text = shown("top", named, "--test", "q-2", "--most", "helpful")
    assert rows_of(text) == expected_rows(*InfluenceRun(named).top(3, "q-2"))


def test_top_of_groups(tmp_path):
    run = made(tmp_path / "run.zarr", query_groups=["a", "b", "a", "b", "b"], metadata=None)
    text = shown("top", tmp_path / "run.zarr", "--test", "b", "--k", 1, "--most", "harmful")
    assert text.startswith("The group id b")
    assert expected_rows(*run.top(1, "b", "harmful"))[0][0] in text


def test_every_column_is_shown_and_no_text_is_cut_or_read_as_markup(plain):
    result = invoke("top", plain, "--test", 0, "--k", N, "--most", "helpful")
    assert re.search(r"influence +id +flipped +loss +text +label", result.stdout)
    for i in range(N):
        flipped = "yes" if METADATA["train"]["flipped"][i] else "no"
        loss, label = METADATA["train"]["loss"][i], METADATA["train"]["label"][i]
        row = rf" {i} +{flipped} +{loss:.4g} +{re.escape(f'{i}: {LONG}')} +{label}"
        assert re.search(row, result.stdout)
    assert r"[red]query[/red] \x1b[31m0" in result.stdout
    assert "\x1b" not in result.stdout


def lines_of(tables, width):
    console = Console(width=width, file=StringIO(), record=True)
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def test_on_a_terminal_lines_are_broken_and_nothing_is_lost(plain, run):
    lines = lines_of(mean_tables(run, N, ["helpful"]), 80)
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    for word in LONG.split():
        assert words.count(word) >= N
    for label in ("rotten", "fresh"):
        assert words.count(label) == N // 2
    assert "…" not in " ".join(lines)
    narrow = lines_of(info_tables(run, blocks=True), 30)
    assert "…" not in " ".join(narrow)


def test_without_the_demos_packages_there_is_help_and_a_pipe_gets_whole_lines(plain):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['transformers', 'peft', 'matplotlib.pyplot']))\n"
        "from pydvl_datainf.cli import main\n"
        "main(['demo', '--help'], standalone_mode=False)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "top", str(plain), "--k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--overwrite" in done.stdout
    assert done.stdout.count(LONG) == 2


# What is refused


@pytest.mark.parametrize("command", ["info", "top"])
def test_what_holds_no_run_is_refused(tmp_path, command):
    assert "There is no store at" in refused(command, tmp_path / "none")
    assert "holds no Zarr group" in refused(command, tmp_path)
    assert "cannot be opened" in refused(command, "no-such-protocol://bucket/run.zarr")


@pytest.mark.parametrize("command", ["info", "top", "report"])
def test_a_mistyped_store_is_told_with_like_names(tmp_path, monkeypatch, command):
    (tmp_path / "influences.zarr").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refused(command, "influence.zarr") == (
        f"Error: There is no store at {tmp_path}/influence.zarr. Did you mean "
        f"{tmp_path}/influences.zarr?\n"
    )


def test_damaged_metadata_are_refused(tmp_path):
    made(tmp_path / "run.zarr")
    (tmp_path / "run.zarr/zarr.json").write_text("{")
    refused("info", tmp_path / "run.zarr")


def test_an_unknown_id_is_refused_with_some_that_are_known(plain, named):
    assert "has the id '99'. The ids of the 5 there are: 0, 1, 2" in refused(
        "top", plain, "--test", "99"
    )
    assert "are: q-0, q-1" in refused("top", named, "--test", "2")


def test_more_than_the_run_kept_is_refused(named):
    assert "kept the top 3 of each test sample, not 4" in refused(
        "top", named, "--test", "q-0", "--k", "4"
    )


def test_top_of_a_stopped_run_names_the_remedy(stopped):
    for arguments in ((), ("--test", "0")):
        message = refused("top", stopped, *arguments)
        assert "is not complete (3 of 9 chunks of results)" in message
        assert "same arguments" in message


def test_top_of_a_damaged_run_names_the_chunk(damaged):
    assert "scores/c/1/2" in refused("top", damaged, "--test", "3")
    assert InfluenceRun(damaged).is_complete
