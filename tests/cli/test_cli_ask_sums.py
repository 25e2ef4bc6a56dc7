"""`pydvl-datainf ask` of a sum: each part by its own model, added as the sum was."""

import json

import numpy as np
import pytest

from commands import failed, printed
from jobs import WEIGHTS, write_checkpoints_job
from pydvl_datainf import InfluenceRun, sum_runs
from pydvl_datainf.results.by_token import answers_by_token

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
QUESTION = {"prompt": "What is 3 plus 4?", "answer": " It is 7, I think 7."}
TOLD = [part for name, text in QUESTION.items() for part in (f"--{name}", text)]


@pytest.fixture(scope="module")
def total(tuned, tmp_path_factory):
    """The sum of two adapters, of which one test sample is the question."""
    folder = tmp_path_factory.mktemp("sum")
    fields = {"dtype": "float64", "rows": "zarr", "blocks": "full", "exact_sample": 0}
    write_checkpoints_job(folder, tuned, [{"id": "own", **QUESTION}], **fields)
    printed("run", folder / "job.yaml", "--no-progress")
    return InfluenceRun(folder / "out.zarr")


def asked(store, *arguments):
    return json.loads(printed("ask", store, *arguments, "--format", "json", "--no-progress"))


def scores_of(question, run):
    found = {r["id"]: r["influence"] for r in question["helpful"]}
    return np.array([found[i] for i in run.train_ids.tolist()])


def close(found, expected, bound=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_tokens_of_an_answer_add_up_to_its_scores_as_a_test_sample(total, tmp_path):
    kept = tmp_path / "kept.zarr"
    asked(total.store, *TOLD, "--by-token", "--keep", kept)
    stored = InfluenceRun(kept)
    (answer,) = answers_by_token(stored, 7)
    # Llama takes norms in float32.
    close(answer.influences, total.scores[0][answer.positions], 1e-6)
    alone = InfluenceRun(total.parts[0].place).scores[0]
    with pytest.raises(AssertionError):  # negative control: the parts differ
        close(answer.influences, sum(WEIGHTS) * alone[answer.positions], 1e-6)
    assert [part.weight for part in stored.parts] == WEIGHTS
    assert [part.place for part in stored.parts] == [f"{kept}.parts/{k}.zarr" for k in (1, 2)]
    first = total.train_ids[answer.positions[0]]
    assert f"{first}" in printed("top", kept, "--k", 1)


def test_kept_answers_are_asked_as_the_sum_is(total, monkeypatch):
    monkeypatch.chdir(total.store.path.parent)
    args = ("--prompt", "What is 2 plus 2?", "--answer", " 4.")
    (first,) = asked(total.store, *args, "--keep", "kept.zarr")
    (found,) = asked("kept.zarr", *args)
    assert found["helpful"] == first["helpful"]


def test_the_last_checkpoint_answers(total, monkeypatch):
    monkeypatch.chdir(total.store.path.parent)
    args = ("--prompt", QUESTION["prompt"], "--max-new-tokens", "5")
    (found,), (last,) = asked(total.store, *args), asked(total.parts[1].place, *args)
    assert (found["answer"], found["origin"]) == (last["answer"], "generated")
    assert found["helpful"] != last["helpful"]


def test_a_sum_that_no_job_made_is_asked_by_the_jobs_of_its_parts(total, tmp_path, monkeypatch):
    monkeypatch.chdir(total.store.path.parent)
    runs = [InfluenceRun(part.place) for part in total.parts]
    made = sum_runs(runs, tmp_path / "elsewhere.zarr", [1.0, 3.0], progress=False)
    message = failed(1, "ask", made.store, *TOLD)
    assert "not below the folder of the sum. If you trust that place, use --follow-rows" in message
    (found,) = asked(made.store, *TOLD, "--follow-rows")
    close(scores_of(found, made), runs[0].scores[0] + 3 * runs[1].scores[0])
