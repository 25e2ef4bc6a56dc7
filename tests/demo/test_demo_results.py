"""The demo's results: what they are, when they are reused, replaced or repaired."""

import shutil
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from pydvl_datainf.demo import output, run
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.scoring import Scores
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tables import tables
from pydvl_datainf.report import is_report, write_report
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.tasks import blocks
from small_demo import OTHER, SETTINGS, Demo, prepared, reviews

SCORES = Scores(
    influences=np.array([[1.0, -6.0, 0.0], [3.0, 2.0, 1.0]], dtype=np.float32),
    self_influences=np.array([4.0, 16.0, 1.0], dtype=np.float32),
    hessian_free=np.array([0.5, -0.25, 0.0], dtype=np.float32),
    scaled_hessian_free=np.array([0.25, 0.0, -2.0], dtype=np.float32),
    losses=np.array([0.1, 2.0, 0.3], dtype=np.float32),
)


def test_suspicions_are_larger_for_harmful_reviews():
    expected = {
        "Mean influence (DataInf)": [-2.0, 2.0, -0.5],
        "Median influence (DataInf)": [-2.0, 2.0, -0.5],
        "Self-influence (DataInf)": [4.0, 16.0, 1.0],
        "Relative influence (DataInf)": [-1.0, 0.5, -0.5],
        "Hessian-free": [-0.5, 0.25, 0.0],
        "Hessian-free, scaled": [-0.25, 0.0, 2.0],
        "Training loss": [0.1, 2.0, 0.3],
        "Suspicion: ranks of loss and relative": [1.0, 3.0, 2.0],
    }
    suspicions = SCORES.suspicions()
    assert list(suspicions) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(suspicions[name], values, rtol=1e-6)


@pytest.fixture
def result():
    return DemoResult(
        settings=DemoSettings(train=3, test=2, flip=0.4),
        train=reviews([0, 1, 1], [False, True, False]),
        test=reviews([1, 0], [False, False]),
        accuracy=0.5,
        n_parameters=12,
        damping={"a": 1e-3, "b": 2e-5},
        scores=SCORES,
        seconds={"Tuning": 1.25, "Scoring": 2.0},
    )


def test_the_auc_of_each_score_is_taken_against_the_flipped_labels(result):
    # The flipped review is the most suspicious of three by each score but one.
    assert result.aucs() == dict.fromkeys(SCORES.suspicions(), 1.0) | {"Hessian-free, scaled": 0.5}


def test_tables_show_what_was_found(result):
    console = Console(record=True, width=100, file=StringIO())
    for table in tables(result):
        console.print(table)
    text = " ".join(console.export_text().split())
    for expected in (
        "with flipped label 1 (33.3%)",
        "Accuracy on them 50.0%",
        "Damping λ, smallest to largest 2.00e-05 to 1.00e-03",
        "Tuning 1.2 Scoring 2.0",
        "Together 3.2",
        "Training loss 1.000",
        "The 3 most suspicious training reviews by Mean influence (DataInf)",
        "-2.00e+00 fresh flipped [review] 1 +5.00e-01 fresh [review] 2",
        "1 of 3 were flipped; guessing would find 1.0.",
        "which is fresh: [review] 0",
        "+1.00e+00 rotten [review] 0 +0.00e+00 fresh [review] 2",
    ):
        assert expected in text


def stop(*arguments):
    raise KeyboardInterrupt


def interrupted(demo, monkeypatch, **wishes):
    """Begins a run that is stopped after its first scores."""
    calls = iter([blocks.write_tiles])
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "write_tiles", lambda *arguments: next(calls, stop)(*arguments))
        with pytest.raises(KeyboardInterrupt):
            demo(**wishes)


def assert_equal(one, other):
    for side in ("train", "test"):
        for name in ("texts", "labels", "flipped"):
            a, b = (getattr(getattr(result, side), name) for result in (one, other))
            np.testing.assert_array_equal(a, b)
    for name in ("influences", "self_influences", "hessian_free", "scaled_hessian_free", "losses"):
        np.testing.assert_array_equal(getattr(one.scores, name), getattr(other.scores, name))
    for name in ("settings", "accuracy", "n_parameters", "damping"):
        assert getattr(one, name) == getattr(other, name)


def test_the_result_is_what_the_influence_model_gives(demo):
    result = demo()
    stages = run.Stages(lambda line: None)
    made = prepared(SETTINGS, stages)
    influence = made.influence.fit(made.train)
    (queries,) = made.test
    for found, expected in (
        (result.scores.influences, influence.training_influences(*queries)),
        (result.scores.self_influences, influence.self_influences()),
    ):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-9 * scale)
    columns = made.columns["train"]
    with torch.no_grad():
        batches = [F.cross_entropy(influence.model(x), y, reduction="none") for x, y in made.train]
    np.testing.assert_allclose(result.scores.losses, torch.cat(batches).numpy(), rtol=1e-12)
    for name in ("hessian_free", "scaled_hessian_free"):
        np.testing.assert_array_equal(getattr(result.scores, name), columns[name])
    np.testing.assert_array_equal(result.train.texts, columns["text"])
    assert result.train.labels.tolist() == [0, 1, 1, 0, 0, 1, 0, 1, 1]
    assert result.train.flipped.tolist() == [True, False, True] * 3
    assert result.test.labels.tolist() == [1, 0, 0, 1]
    assert (result.settings, result.accuracy, result.n_parameters) == (SETTINGS, 0.75, 8)
    assert result.damping == pytest.approx(influence.damping, rel=1e-9)
    assert list(result.seconds)[:2] == ["Tuning", "DataInf: gradients"]


def test_scores_two_plots_and_a_report_are_written(tmp_path, monkeypatch):
    folder = tmp_path / "parent" / "results"
    demo = Demo(folder, monkeypatch, write_report, run.write_plots)
    demo()
    assert demo.lines == ["Tuning …", "DataInf: influences and self-influences …"]
    assert {path.name for path in demo.out.iterdir()} == output.FILES
    assert list(demo.out.parent.iterdir()) == [demo.out]
    for name in output.PLOTS:
        assert (demo.out / name).read_bytes().startswith(b"\x89PNG")
    assert is_report(demo.out / output.REPORT)
    page = (demo.out / output.REPORT).read_text("utf-8")
    assert "[review] 3" in page
    assert "flipped" in page


def test_people_find_labels_in_words_beside_the_scores(demo):
    demo()
    columns = InfluenceRun(demo.store).metadata("train")
    assert set(columns) == {
        "text",
        "label",
        "flipped",
        "hessian_free",
        "scaled_hessian_free",
    }
    assert columns["label"][:3].tolist() == ["rotten", "fresh", "fresh"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_complete_result_of_the_same_settings_is_reused(demo, overwrite):
    first = demo()
    for name in output.SHOWN:
        (demo.out / name).unlink()
    again = demo(overwrite=overwrite)
    assert demo.tuned == 1
    created = InfluenceRun(demo.store).attrs["created"]
    assert demo.lines == [f"Reusing the result of {created}, which has the same settings."]
    assert_equal(first, again)
    assert first.seconds == again.seconds
    assert {path.name for path in demo.out.iterdir()} == output.FILES


def test_a_result_of_other_settings_is_refused_before_tuning_and_names_what_differs(demo):
    demo()
    before = demo.content()
    with pytest.raises(OutputError, match=r"\(seed: 0 in the store, 1 now\); .* --overwrite"):
        demo(OTHER)
    assert (demo.tuned, demo.content()) == (1, before)


def test_a_result_of_another_model_package_is_another_one(demo, monkeypatch):
    demo()
    monkeypatch.setattr(output, "MODEL_SHA256", "0" * 64)
    with pytest.raises(OutputError, match=r"\(model: 1 differ \('sha256'\)\)"):
        demo()


def test_a_result_of_other_settings_is_replaced_on_request(demo):
    first = demo()
    second = demo(OTHER, overwrite=True)
    assert second.settings == OTHER
    assert (second.scores.influences != first.scores.influences).any()
    assert_equal(second, demo(OTHER))
    assert demo.tuned == 2


def test_a_result_of_other_settings_outlives_tuning_that_fails(demo, monkeypatch):
    demo()
    before = demo.content()
    monkeypatch.setattr(run, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        demo(OTHER, overwrite=True)
    assert demo.content() == before


def test_nothing_shown_of_an_earlier_result_stands_beside_a_new_one_that_was_stopped(
    demo, monkeypatch
):
    demo()
    interrupted(demo, monkeypatch, settings=OTHER, overwrite=True)
    assert not {path.name for path in demo.out.iterdir()} & output.SHOWN


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stopped_run_goes_on_and_gives_the_same_bits(demo, monkeypatch, overwrite):
    expected = demo()
    shutil.rmtree(demo.out)
    interrupted(demo, monkeypatch)
    begun = InfluenceRun(demo.store)
    assert not begun.is_complete
    there, _ = begun.progress()
    assert there > 0

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_vectors", stop)  # what is done is not done again
        result = demo(overwrite=overwrite)
    assert "is not complete; what is missing is computed." in demo.lines[0]
    assert_equal(result, expected)
    after = InfluenceRun(demo.store)
    assert after.attrs["created"] == begun.attrs["created"]
    assert after.metadata("run") == begun.metadata("run")


def test_a_damaged_result_is_repaired(demo):
    expected = demo()
    chunk = demo.store / "scores/c/0/0"
    damaged = bytearray(chunk.read_bytes())
    damaged[9] ^= 1
    chunk.write_bytes(damaged)
    assert_equal(demo(), expected)
    assert "is damaged; what is missing is computed." in demo.lines[0]


def test_a_stopped_run_of_a_model_that_comes_out_otherwise_is_replaced_on_request(
    demo, monkeypatch
):
    interrupted(demo, monkeypatch)
    demo.weight_seed = 5
    with pytest.raises(OutputError, match=r"threads or .* --overwrite"):
        demo()
    before = InfluenceRun(demo.store).metadata("run")["seconds"]
    demo(overwrite=True)
    assert InfluenceRun(demo.store).is_complete
    assert InfluenceRun(demo.store).metadata("run")["seconds"] != before
