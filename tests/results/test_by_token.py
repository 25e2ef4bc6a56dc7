"""Answers that were asked token by token: their parts, from the scores themselves."""

from dataclasses import replace

import numpy as np
import pytest

from pydvl_datainf import InfluenceRun, tables
from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.by_token import BY_TOKEN, answers_by_token
from report_pages import made

TOKENS = {"test": ["a.b.0", "a.b.1", "a.b.2", "c.0", "c.1"]}
TEXTS = {
    "prompt": ["p"] * 3 + ["[q]"] * 2,
    "answer": [" x, y."] * 3 + [" z\n"] * 2,
    "counted": [" x", ", y", ".", " z", "\n"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("by_token") / "run.zarr"
    made(store, ids=TOKENS, metadata={"test": TEXTS, "run": {BY_TOKEN: "sum"}})
    return store


@pytest.fixture(params=["sum", "mean", "other"])
def run(request, store):
    """The run, as if this had been told of it."""
    run = InfluenceRun(store)
    run.attrs["fingerprint"]["run metadata"] = {BY_TOKEN: request.param}
    return run, request.param


@pytest.mark.parametrize("k", [2, 30])
def test_each_answer_has_its_tokens_and_the_samples_at_both_ends(run, k):
    run, losses = run
    scores = run.scores[...].astype(np.float64)
    found = list(answers_by_token(run, k))
    assert [(a.id, a.prompt, a.answer) for a in found] == [
        ("a.b", "p", " x, y."),
        ("c", "[q]", " z\n"),
    ]
    assert [a.tokens for a in found] == [[" x", ", y", "."], [" z", "\n"]]
    for answer, rows in zip(found, (scores[:3], scores[3:]), strict=True):
        whole = rows.mean(0) if losses == "mean" else rows.sum(0)
        order = whole.argsort()[::-1]
        expected = order if k >= 12 else [*order[:k], *order[-k:]]
        assert answer.positions.tolist() == list(expected)
        np.testing.assert_allclose(answer.influences, whole[expected], rtol=1e-12, atol=1e-18)
        scale = len(rows) if losses == "mean" else 1
        np.testing.assert_allclose(answer.parts, rows[:, expected] / scale, rtol=1e-12)


MEANINGS = {
    "sum": "The loss of the answer is the sum over its tokens",
    "mean": "The loss of the answer is the mean over its 3 tokens: each number is that part",
    "other": "Each number is the influence on the token by itself",
}


def test_a_table_has_a_row_for_each_token_and_a_column_for_each_sample(run):
    run, losses = run
    table, other = tables.token_tables(run, 3)
    answer = next(answers_by_token(run, 3))
    names, *columns = (list(column.cells) for column in table.columns)
    assert [str(name) for name in names] == [" x", ", y", ".", "all"]
    assert len(columns) == 6
    numbers = np.array([[float(cell) for cell in column] for column in columns]).T
    whole = np.vstack([answer.parts, answer.influences])
    unit = 10.0 ** np.floor(np.log10(np.abs(whole).max()))
    np.testing.assert_allclose(numbers * unit, whole, rtol=0, atol=0.0051 * unit)
    assert f"in units of {unit:.0e}" in str(table.caption)
    assert MEANINGS[losses] in str(table.caption)
    assert [str(column.header) for column in table.columns[1:]] == [
        str(i) for i in answer.positions
    ]
    assert str(other.columns[0]._cells[1]) == "↵"
    assert str(other.title) == "[q]\n z\n"


def test_without_any_influence_there_are_zeros(run, monkeypatch):
    answer = next(answers_by_token(run[0], 1))
    nothing = replace(answer, parts=0 * answer.parts)
    monkeypatch.setattr(tables, "answers_by_token", lambda run, k: [nothing])
    (table,) = tables.token_tables(run[0], 1)
    assert [str(cell) for cell in table.columns[1].cells] == ["+0.00"] * 4


def test_other_runs_are_refused(store):
    run = InfluenceRun(store)
    run.attrs["fingerprint"]["run metadata"] = {}
    with pytest.raises(StoreError, match=r"holds no answers by token\. Ask with by_token=True"):
        next(answers_by_token(run, 3))
