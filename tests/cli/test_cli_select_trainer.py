"""`pydvl-datainf select` of runs that no job made, and of answers that were kept."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset

from commands import failed, printed
from jobs import changed
from pydvl_datainf import InfluenceRun, influence_from_trainer, run_influences
from pydvl_datainf.asking import Question, ask
from pydvl_datainf.huggingface import AnswerEncoder
from trl_trainers import trained
from tuned import sums, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(i):
    return {"id": f"sum {i}", "prompt": f"What is {i} plus {i}?", "completion": f" It is {2 * i}."}


SAMPLES = [sample(i) for i in range(9)]


@pytest.fixture(scope="module")
def folder_of_trainer(tmp_path_factory):
    """The run of a trainer of trl, answers that were asked of it, and its training file."""
    folder = tmp_path_factory.mktemp("trainer")
    trainer = trained("SFT", folder, sample, count=9, logging_strategy="no")
    held_out = [sample(i) for i in range(20, 23)]
    made = influence_from_trainer(trainer, test=Dataset.from_list(held_out))
    run = run_influences(*made, folder / "run.zarr", rows="zarr", progress=False)
    encoder = AnswerEncoder(trainer.processing_class, trainer.args.max_length)
    questions = [Question(s["prompt"], s["completion"], id=s["id"]) for s in held_out]
    ask(run, made.influence, questions, encoder=encoder, store=folder / "asked.zarr")
    write_lines(folder / "train.jsonl", SAMPLES)
    return folder


def test_a_question_to_a_trainer_has_the_scores_of_its_test_sample(folder_of_trainer):
    run, found = (InfluenceRun(folder_of_trainer / f"{name}.zarr") for name in ("run", "asked"))
    scale = np.abs(run.scores[...]).max()
    assert scale > 0
    np.testing.assert_allclose(found.scores, run.scores, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["run", "asked"])
def test_the_next_file_of_a_run_of_a_trainer(folder_of_trainer, tmp_path, name):
    store, out = folder_of_trainer / f"{name}.zarr", tmp_path / "next.jsonl"
    train = folder_of_trainer / "train.jsonl"
    said = printed("select", store, "--keep-helpful", "4", "--train", train, "-o", out)
    best = np.argsort(-InfluenceRun(store).mean_influence(), kind="stable")[:4]
    before = train.read_text().splitlines(keepends=True)
    assert out.read_text() == "".join(before[i] for i in sorted(best.tolist()))
    dropped = lines_of(tmp_path / "next.dropped.jsonl")
    assert {record["position"] for record in dropped} == set(range(9)) - set(best.tolist())
    assert said.endswith(f"To tune again, train as before on {out}.\n")


OTHERS = {
    "another order": (SAMPLES[::-1], "line 1: 'id' is 'sum 8', and was 'sum 0' when"),
    "fewer": (SAMPLES[:-1], "holds 8 samples, and .* was made of 9"),
    "no ids": ([{"prompt": s["prompt"]} for s in SAMPLES], "line 1: no column 'id'"),
    "another text": (
        [*SAMPLES[:8], {**SAMPLES[8], "completion": " It is 15."}],
        "line 9: 'completion' is ' It is 15.', and was ' It is 16.</s>' when",
    ),
    "a shorter text": (
        [*SAMPLES[:8], {**SAMPLES[8], "completion": " It is 1"}],
        "line 9: 'completion' is ' It is 1', and was ' It is 16.</s>' when",
    ),
    "no text": (
        [*SAMPLES[:8], {**SAMPLES[8], "completion": None}],
        "line 9: 'completion' is None, and was ' It is 16.</s>' when",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_file_is_refused(folder_of_trainer, tmp_path, other):
    records, message = OTHERS[other]
    train, out = write_lines(tmp_path / "train.jsonl", records), tmp_path / "next.jsonl"
    args = ("select", folder_of_trainer / "run.zarr", "--drop-harmful", "1", "-o", out)
    assert re.search(message, failed(1, *args, "--train", train))
    assert list(tmp_path.iterdir()) == [train]


def test_what_does_not_go_with_a_file_is_refused(folder_of_trainer, tmp_path):
    train, store = folder_of_trainer / "train.jsonl", folder_of_trainer / "run.zarr"
    args = ("select", store, "--drop-harmful", "1", "-o")
    out = tmp_path / "next.jsonl"
    assert "Name its training data (--train FILE)" in failed(1, *args, out)
    message = failed(2, *args, out, "--train", train, "--job", train)
    assert "Give either --job or --train" in message
    message = failed(1, *args, out, "--train", train, "--relabel")
    assert "Labels are suggested for sequence-classification" in message
    assert "is the data itself" in failed(1, *args, train, "--train", train, "--overwrite")
    assert lines_of(train) == SAMPLES
    assert "Ask it in Python" in failed(1, "ask", store, "--prompt", "a")


def test_answers_that_were_kept_are_asked_and_selected_as_their_run(folder):
    changed(folder, rows="zarr", exact_sample=0)
    printed("run", folder / "job.yaml", "--no-progress")
    question = ("--prompt", "What is 3 plus 4?", "--answer", " It is 8.")
    kept, again = folder / "kept.zarr", folder / "again.zarr"
    printed("ask", folder / "out.zarr", *question, "--keep", kept, "--no-progress")
    printed("ask", kept, *question, "--keep", again, "--no-progress")
    scores = InfluenceRun(kept).scores[...]
    np.testing.assert_array_equal(InfluenceRun(again).scores, scores)
    args = ("select", folder / "out.zarr", "--keep-helpful", "5", "-o", folder / "next.jsonl")
    assert "Leave --train out" in failed(1, *args, "--train", folder / "train.jsonl")
    printed("select", kept, *args[2:])
    ids = {record["id"] for record in lines_of(folder / "next.jsonl")}
    assert ids == {sums(20)[i]["id"] for i in np.argsort(-scores[0], kind="stable")[:5]}
    (folder / "elsewhere").mkdir()
    kept.rename(folder / "elsewhere" / "kept.zarr")  # whose rows are no longer beside it
    args = ("--keep-helpful", "5", "-o", folder / "other.jsonl")
    message = failed(1, "select", folder / "elsewhere" / "kept.zarr", *args)
    assert "was made by other means than a job" in message


def test_a_question_on_the_command_line_says_how_it_is_asked(folder_of_trainer):
    message = failed(1, "ask", folder_of_trainer / "run.zarr", "--prompt", "What is 3 plus 3?")
    assert "run.zarr was made by other means than a job" in message
    assert "does not tell how its texts were tokenised. Ask it in Python" in message
    assert "influence_from_trainer(trainer).influence) or one that is built of saved" in message
