"""The demo's results, with a small model in place of the tuned transformer."""

import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
import zarr
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence, StoreExistsError, run_influences
from pydvl_datainf.demo import output, run
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.preparation import Prepared
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.reviews import Reviews
from pydvl_datainf.demo.scoring import Scores
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tables import tables
from pydvl_datainf.report import file, is_report, write_report
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.tasks import blocks

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


def reviews(labels, flipped):
    texts = [f"[review] {i}" for i in range(len(labels))]
    return Reviews(np.array(texts, dtype=object), np.array(labels), np.array(flipped))


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


# Runs of the demo

SETTINGS = DemoSettings(train=9, test=4, flip=0.4)
OTHER = replace(SETTINGS, seed=1)


def loader(labels, seed):
    x = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x.double(), torch.from_numpy(labels)), batch_size=4)


def prepared(settings, stages, weight_seed=None):
    with stages.stage("Tuning"):
        torch.manual_seed(settings.seed if weight_seed is None else weight_seed)
        model = nn.Linear(3, 2).double()
    train = reviews([0, 1, 1, 0, 0, 1, 0, 1, 1], [True, False, True] * 3)
    test = reviews([1, 0, 0, 1], [False] * 4)
    scores = {
        "hessian_free": np.linspace(-1, 1, 9) ** 3,
        "scaled_hessian_free": np.linspace(-2, 1, 9) ** 3,
    }
    return Prepared(
        influence=DataInfInfluence(model, F.cross_entropy),
        train=loader(train.labels, 1),
        test=loader(test.labels, 2),
        columns={"train": train.to_columns() | scores, "test": test.to_columns()},
        told={**output.origin(settings), "accuracy": 0.75},
    )


def mark(store, path):
    """Stands for a report, which takes longer."""
    InfluenceRun(store).check()
    path.write_text(file.MARK)


class Demo:
    """Runs the demo into one folder; keeps what it announced, and how often it tuned."""

    def __init__(self, out, monkeypatch, write_report=mark):
        self.out = out
        self.store = out / output.SCORES
        self.lines = []
        self.tuned = 0
        self.weight_seed = None
        monkeypatch.setattr(run, "prepare", self.prepare)
        monkeypatch.setattr(run, "write_report", write_report)

    def prepare(self, settings, stages, progress):
        self.tuned += 1
        return prepared(settings, stages, self.weight_seed)

    def __call__(self, settings=SETTINGS, **wishes):
        self.lines.clear()
        return run.run_demo(settings, self.out, announce=self.lines.append, **wishes)

    def content(self):
        paths = [p for p in self.out.rglob("*") if p.is_file()]
        return {path.relative_to(self.out): path.read_bytes() for path in paths}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    return Demo(tmp_path / "parent" / "results", monkeypatch)


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
    demo = Demo(tmp_path / "parent" / "results", monkeypatch, write_report)
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


# What else may stand in the folder


def written(folder, name="thesis.tex"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    return folder / name


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_touched(demo, overwrite):
    written(demo.out)
    with pytest.raises(OutputError, match=r"does not write \(thesis.tex, for one\)"):
        demo(overwrite=overwrite)
    assert (demo.tuned, [p.name for p in demo.out.iterdir()]) == (0, ["thesis.tex"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_page_that_is_no_report_is_never_replaced(demo, overwrite):
    demo()
    page = written(demo.out, output.REPORT)
    with pytest.raises(OutputError, match=r"does not write \(report.html, for one\)"):
        demo(overwrite=overwrite)
    assert page.read_text() == "mine"


def test_a_file_is_never_replaced(demo):
    path = written(demo.out.parent, demo.out.name)
    with pytest.raises(OutputError, match="is a file"):
        demo(overwrite=True)
    assert path.read_text() == "mine"


def test_a_run_that_is_not_of_the_demo_is_never_replaced(demo):
    made = prepared(SETTINGS, run.Stages(lambda line: None))
    run_influences(made.influence, made.test, made.train, demo.store, progress=False)
    before = demo.content()
    with pytest.raises(OutputError, match="is not of this demo"):
        demo(overwrite=True)
    assert (demo.tuned, demo.content()) == (0, before)


def test_another_zarr_group_is_never_replaced(demo):
    zarr.create_group(demo.store)
    with pytest.raises(StoreExistsError, match="never replaced"):
        demo(overwrite=True)


def test_plots_without_scores_are_replaced_on_request(demo):
    plot = written(demo.out, output.ROC_PLOT)
    with pytest.raises(OutputError, match="holds the plots or the report of an earlier"):
        demo()
    assert plot.read_text() == "mine"
    demo(overwrite=True)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_a_killed_process_left_is_no_hindrance(demo):
    written(demo.out / f".{output.SCORES}.123.old")
    (demo.out / output.LOCK).touch()
    written(demo.out, f".{output.REPORT}.123.part")
    demo()
    assert InfluenceRun(demo.store).is_complete
