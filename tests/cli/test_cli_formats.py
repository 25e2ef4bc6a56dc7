"""`pydvl-datainf top --format`: rankings for programs."""

import csv
import io
import json

import numpy as np
import pytest

import small_runs
from commands import invoke

TEXTS = ['quotes "and", commas', "two\nlines", "\u202e\x1b[2J 漢字", "", "w" * 20_000]
METADATA = {
    "train": {
        "text": [TEXTS[i % len(TEXTS)] for i in range(small_runs.N)],
        "loss": [np.nan, np.inf, *np.linspace(0, 1 / 3, small_runs.N - 2)],
        "flipped": [i % 2 == 0 for i in range(small_runs.N)],
        "lone": ["a\rb"] * small_runs.N,
    }
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = tmp_path_factory.mktemp("formats") / "run.zarr"
    return small_runs.run(store, metadata=METADATA, self_influence=True)


def done(*arguments):
    result = invoke("top", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_records_of_a_test_sample_are_those_of_the_run(run):
    scores = small_runs.oracle()["scores"].sum(1)[3]
    records = json.loads(done(run.store, "--test", "3", "--k", "4", "--format", "json"))
    order = np.argsort(-scores)
    ends = {"helpful": order[:4], "harmful": order[::-1][:4]}
    assert [(r["end"], r["rank"], r["id"]) for r in records] == [
        (end, rank, int(i)) for end, found in ends.items() for rank, i in enumerate(found, 1)
    ]
    small_runs.close(
        np.array([r["influence"] for r in records]), scores[[r["id"] for r in records]]
    )
    assert [r["text"] for r in records] == [TEXTS[r["id"] % 5] for r in records]


def test_all_formats_hold_the_same(run):
    args = (run.store, "--by", "suspicion", "--k", str(small_runs.N))
    listed = json.loads(done(*args, "--format", "json"))
    assert [json.loads(line) for line in done(*args, "--format", "jsonl").splitlines()] == listed
    table = list(csv.DictReader(io.StringIO(done(*args, "--format", "csv"), newline="")))
    told = [
        {name: "" if value is None else str(value) for name, value in record.items()}
        for record in listed
    ]
    assert table == told
    assert {r["suspicion"] for r in listed} == set(run.suspicion().tolist())
    assert {r["end"] for r in listed} == {"harmful"}
    by_id = {r["id"]: r["loss"] for r in listed}
    assert by_id[0] is None
    assert by_id[1] is None
    assert by_id[22] == 1 / 3  # in full
    assert json.dumps(listed).isascii()


def test_single_precision_has_no_more_digits_than_it_has(tmp_path):
    numbers = np.arange(small_runs.N, dtype=np.float32) / 10
    run = small_runs.run(tmp_path / "run.zarr", metadata={"train": {"x": numbers}})
    assert ",0.1\n" in done(run.store, "--k", "23", "--most", "helpful", "--format", "csv")


def test_a_terminal_obeys_nothing_of_it(run, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    text = done(run.store, "--k", "23", "--format", "csv")
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert "w" * 20_000 in text


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_ids_stay_where_a_column_is_called_so(tmp_path, form):
    told = {"ids": {"train": [f"own {i}" for i in range(small_runs.N)]}}
    told["metadata"] = {"train": {"id": [f"other {i}" for i in range(small_runs.N)]}}
    run = small_runs.run(tmp_path / "run.zarr", **told)
    (best,), _ = run.top(1, 3)
    text = done(run.store, "--test", "3", "--k", "1", "--most", "helpful", "--format", form)
    number = best.removeprefix("own ")
    assert text.index("id") < text.index("sample_id")
    assert text.index(f"own {number}") < text.index(f"other {number}")
