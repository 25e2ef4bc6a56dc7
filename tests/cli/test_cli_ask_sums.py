"""`pydvl-datainf ask` of a sum: each part by its own model, added as the sum was."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from commands import failed, printed
from pydvl_datainf import CausalLM, InfluenceRun, sum_runs
from pydvl_datainf.asking import ask
from pydvl_datainf.huggingface import AnswerEncoder, InfluenceBuilder, ModelFiles
from pydvl_datainf.results.by_token import answers_by_token
from tuned import sums, tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
WEIGHTS = [0.5, 2.0]
QUESTION = {"prompt": "What is 3 plus 4?", "answer": " It is 7, I think 7."}
TOLD = [part for name, text in QUESTION.items() for part in (f"--{name}", text)]


@pytest.fixture(scope="module")
def total(tuned, tmp_path_factory):
    """The sum of two adapters, of which one test sample is the question."""
    folder = tmp_path_factory.mktemp("sum")
    for name, factor in (("a", 1.0), ("b", 0.7)):
        path = shutil.copytree(tuned.causal_adapter, folder / name) / "adapter_model.safetensors"
        weights = {key: factor * value for key, value in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
    write_lines(folder / "train.jsonl", sums(7))
    write_lines(folder / "test.jsonl", [{"id": "own", **QUESTION}])
    job = {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "checkpoints": ["a", "./b"],
        "weights": WEIGHTS,
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "columns": {"id": "id"},
        "dtype": "float64",
        "device": "cpu",
        "rows": "zarr",
        "exact_sample": 0,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    printed("run", folder / "job.yaml", "--no-progress")
    return InfluenceRun(folder / "out.zarr")


def asked(store, *arguments):
    return json.loads(printed("ask", store, *arguments, "--format", "json", "--no-progress"))


def scores_of(question, run):
    found = {r["id"]: r["influence"] for r in question["helpful"]}
    return np.array([found[i] for i in run.train_ids.tolist()])


def close(found, expected, bound=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_an_answer_has_the_scores_that_it_has_as_a_test_sample(total):
    (found,) = asked(total.store, *TOLD)
    close(scores_of(found, total), total.scores[0])
    parts = [InfluenceRun(part.place).scores[0] for part in total.parts]
    with pytest.raises(AssertionError):  # negative control: the parts differ
        close(scores_of(found, total), sum(WEIGHTS) * parts[0])


def test_the_last_checkpoint_answers(total, tmp_path, monkeypatch):
    monkeypatch.chdir(total.store.path.parent)
    args = ("--prompt", QUESTION["prompt"], "--max-new-tokens", "5")
    kept = tmp_path / "kept.zarr"
    by_token = asked(total.store, *args, "--by-token", "--keep", kept)
    (last,) = asked(total.parts[1].place, *args)
    assert {(q["answer"], q["origin"]) for q in by_token} == {(last["answer"], "generated")}
    (given,) = asked(total.store, *args[:2], "--answer", last["answer"])
    stored = InfluenceRun(kept)
    (answer,) = answers_by_token(stored, 7)
    # Llama takes norms in float32.
    close(answer.influences, scores_of(given, total)[answer.positions], 1e-6)
    with pytest.raises(AssertionError):  # negative control: the last one alone
        close(answer.influences, sum(WEIGHTS) * scores_of(last, total)[answer.positions], 1e-6)
    assert [part.weight for part in stored.parts] == WEIGHTS
    assert [part.place for part in stored.parts] == [f"{kept}.parts/{k}.zarr" for k in (1, 2)]
    assert f"{given['helpful'][0]['id']}" in printed("top", kept, "--k", 1)


def test_a_sum_that_no_job_made_is_asked_by_the_jobs_of_its_parts(total, tmp_path, monkeypatch):
    folder = total.store.path.parent
    monkeypatch.chdir(folder)
    made = sum_runs(
        [InfluenceRun(part.place) for part in total.parts],
        folder / "b.zarr",
        [1.0, 3.0],
        progress=False,
    )
    parts = [InfluenceRun(part.place).scores[0] for part in total.parts]
    (found,) = asked(made.store, *TOLD)
    close(scores_of(found, made), parts[0] + 3 * parts[1])
    elsewhere = tmp_path / "elsewhere.zarr"
    shutil.copytree(folder / "b.zarr", elsewhere)
    message = failed(1, "ask", elsewhere, *TOLD)
    assert "Part 1 of" in message
    assert "not below the folder of the sum. If you trust that place, use --follow-rows" in message
    (found,) = asked(elsewhere, *TOLD, "--follow-rows")
    close(scores_of(found, made), parts[0] + 3 * parts[1])
    shutil.rmtree(folder / "b.zarr")


def test_in_python_each_part_has_its_model(total, tuned):
    folder = total.store.path.parent
    builders = [
        InfluenceBuilder(
            ModelFiles("causal-lm", str(tuned.causal), str(folder / name), dtype="float64"),
            CausalLM(),
            device="cpu",
            max_tokens=2048,
        )
        for name in "ab"
    ]
    encoder = AnswerEncoder(tokenizer(), 512)
    given = {"answer": QUESTION["answer"], "encoder": encoder}
    found = ask(total, builders, QUESTION["prompt"], **given)
    close(found.scores[0], total.scores[0])
