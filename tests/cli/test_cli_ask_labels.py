"""`pydvl-datainf ask` of classifiers: a text has the scores that it has as a test sample."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from commands import failed, printed
from jobs import changed
from pydvl_datainf import InfluenceRun
from tuned import tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
LABELS = ["bad", "good"]
PAIRS = [
    {"id": f"p{i}", "first": f"It is {i}", "second": f"{i * i} " * (1 + i % 3), "is": LABELS[i % 2]}
    for i in range(9)
]


@pytest.fixture(scope="module")
def pairs(tuned, tmp_path_factory):
    """The run of a classifier of pairs, tuned whole, of whose head influences are."""
    folder = tmp_path_factory.mktemp("pairs")
    write_lines(folder / "train.jsonl", PAIRS)
    write_lines(folder / "test.jsonl", PAIRS[4:7])
    job = {
        "task": "sequence-classification",
        "model": str(tuned.classifier),
        "parameters": ["classifier.*"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "columns": {"text": "first", "text_pair": "second", "label": "is", "id": "id"},
        "out": "out.zarr",
        "device": "cpu",
        "dtype": "float64",
        "rows": "zarr",
        "exact_sample": 0,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    printed("run", folder / "job.yaml", "--no-progress")
    return InfluenceRun(folder / "out.zarr")


def asked(*arguments):
    return json.loads(printed("ask", *arguments, "--format", "json", "--no-progress"))


def scores_of(question, run):
    """Influences of all training samples, by their order, from what `ask` prints."""
    found = {r["id"]: r["influence"] for r in question["helpful"]}
    return np.array([found[i] for i in run.train_ids.tolist()])


def close(found, expected, bound=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_several_pairs_have_the_scores_that_they_have_as_test_samples(pairs, tmp_path):
    questions = [
        {"prompt": p["first"], "text_pair": p["second"], "answer": p["is"], "id": p["id"]}
        for p in PAIRS[4:7]
    ]
    path = write_lines(tmp_path / "questions.jsonl", questions)
    found = asked(pairs.store, "--questions", path, "--k", "9")
    assert [q["id"] for q in found] == ["p4", "p5", "p6"]
    assert [(q["text_pair"], q["answer"], q["origin"]) for q in found] == [
        (p["second"], p["is"], "given") for p in PAIRS[4:7]
    ]
    assert "counted" not in found[0]
    for question, expected in zip(found, pairs.scores[...], strict=True):
        close(scores_of(question, pairs), expected)
    with pytest.raises(AssertionError):  # negative control: the label decides
        close(scores_of(found[0], pairs), pairs.scores[1])


def test_a_label_that_is_not_given_is_the_models_own(pairs, tuned):
    text = ("--prompt", "It is 3", "--text-pair", "4")
    (found,) = asked(pairs.store, *text)
    model = AutoModelForSequenceClassification.from_pretrained(tuned.classifier).double().eval()
    with torch.no_grad():
        logits = model(**tokenizer()("It is 3", "4", return_tensors="pt")).logits[0]
    assert found["answer"] == LABELS[int(logits.argmax())]
    assert found["origin"] == "predicted"
    answers = [asked(pairs.store, *text, "--answer", label)[0] for label in LABELS]
    assert found["helpful"] == answers[int(logits.argmax())]["helpful"]
    # Of two classes the gradients for either label are opposed.
    one, other = (scores_of(answer, pairs) for answer in answers)
    p = logits.softmax(0).numpy()
    close(one * p[0], -other * p[1], 1e-7)


def test_a_run_of_margins_is_asked_for_the_margin(pairs):
    folder = pairs.store.path.parent
    changed(folder, query="margin", out="margin.zarr")
    printed("run", folder / "job.yaml", "--no-progress")
    run, one = InfluenceRun(folder / "margin.zarr"), PAIRS[5]
    text = ("--prompt", one["first"], "--text-pair", one["second"])
    (found,) = asked(run.store, *text, "--answer", one["is"])
    close(scores_of(found, run), run.scores[1])
    message = failed(1, "ask", run.store, *text, "--by-token")
    assert "A label has no tokens. Ask a classifier without by_token." in message
