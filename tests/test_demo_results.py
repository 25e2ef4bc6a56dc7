from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import zarr
from rich.console import Console

from pydvl_datainf.demo import output, record
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.output import output_folder
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.reviews import Reviews
from pydvl_datainf.demo.run import write_result
from pydvl_datainf.demo.scoring import Scores
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tables import tables

SCORES = Scores(
    influences=np.array([[1.0, -6.0, 0.0], [3.0, 2.0, 1.0]], dtype=np.float32),
    self_influences=np.array([4.0, 16.0, 1.0], dtype=np.float32),
    hessian_free=np.array([0.5, -0.25, 0.0], dtype=np.float32),
    losses=np.array([0.1, 2.0, 0.3], dtype=np.float32),
)


def test_suspicions_are_larger_for_harmful_reviews():
    expected = {
        "Mean influence (DataInf)": [-2.0, 2.0, -0.5],
        "Self-influence (DataInf)": [4.0, 16.0, 1.0],
        "Relative influence (DataInf)": [-1.0, 0.5, -0.5],
        "Hessian-free": [-0.5, 0.25, 0.0],
        "Training loss": [0.1, 2.0, 0.3],
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
    # The flipped review is the most suspicious of three by each score.
    assert result.aucs() == dict.fromkeys(SCORES.suspicions(), 1.0)


def test_the_record_holds_scores_texts_labels_and_what_was_computed(result, tmp_path):
    record.write_record(tmp_path / "scores.zarr", result)
    group = zarr.open_group(tmp_path / "scores.zarr", mode="r")
    expected = {
        "scores": SCORES.influences,
        "self_influences": SCORES.self_influences,
        "hessian_free": SCORES.hessian_free,
        "losses": SCORES.losses,
        "train_text": result.train.texts,
        "train_label": [0, 1, 1],
        "train_flipped": [False, True, False],
        "test_text": result.test.texts,
        "test_label": [1, 0],
        "test_flipped": [False, False],
    }
    assert set(group.array_keys()) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(group[name][...], values)
    assert group.metadata.zarr_format == 3
    assert group.attrs["damping"] == {"a": 1e-3, "b": 2e-5}
    assert group.attrs["settings"]["flip"] == 0.4
    assert group.attrs["settings"]["seed"] == 0


def test_the_record_is_laid_out_for_xarray(result, tmp_path):
    record.write_record(tmp_path / "scores.zarr", result)
    group = zarr.open_group(tmp_path / "scores.zarr", mode="r")
    sizes = {"test": 2, "train": 3}
    for _, array in group.arrays():
        assert array.shape == tuple(sizes[d] for d in array.metadata.dimension_names)
    assert group["scores"].metadata.dimension_names == ("test", "train")
    assert group.metadata.consolidated_metadata is not None
    assert set(group.attrs["coordinates"].split()) < set(group.array_keys())


def test_scores_on_disk_fill_with_nan_and_are_checked_on_reading(result, tmp_path):
    record.write_record(tmp_path / "scores.zarr", result)
    scores = zarr.open_group(tmp_path / "scores.zarr", mode="r")["scores"]
    assert np.isnan(scores.fill_value)
    chunk = tmp_path / "scores.zarr/scores/c/0/0"
    damaged = bytearray(chunk.read_bytes())
    damaged[9] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        scores[...]


def test_scores_that_are_not_finite_are_not_written(result, tmp_path):
    losses = np.array([0.1, np.inf, 0.3])
    broken = replace(result, scores=replace(SCORES, losses=losses))
    with pytest.raises(ValueError, match="losses holds values that are not finite"):
        record.write_record(tmp_path / "scores.zarr", broken)


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


def test_result_is_written_as_scores_and_two_plots(result, tmp_path):
    write_result(tmp_path, result)
    assert {path.name for path in tmp_path.iterdir()} == output.FILES
    for name in (output.ROC_PLOT, output.DISTRIBUTION_PLOT):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# Output folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def earlier(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / output.ROC_PLOT).write_text("old")
    return folder


def write(out, overwrite, name=output.ROC_PLOT):
    with output_folder(out, overwrite) as folder:
        (folder / name).write_text("new")


@pytest.mark.parametrize("name", ["new", "parent/new"])
def test_output_appears_when_complete(tmp_path, name):
    out = tmp_path / name
    with output_folder(out, overwrite=False) as folder:
        (folder / output.ROC_PLOT).write_text("new")
        assert not out.exists()
    assert content(out) == {output.ROC_PLOT: "new"}
    assert list(out.parent.iterdir()) == [out]


def test_earlier_output_is_refused_at_once(earlier):
    with pytest.raises(OutputError, match=r"earlier result; .* --overwrite"):
        write(earlier, overwrite=False)
    assert content(earlier) == {output.ROC_PLOT: "old"}


def test_earlier_output_is_replaced_whole_on_request(earlier):
    write(earlier, overwrite=True, name=output.DISTRIBUTION_PLOT)
    assert content(earlier) == {output.DISTRIBUTION_PLOT: "new"}
    assert list(earlier.parent.iterdir()) == [earlier]


def fail(out):
    with output_folder(out, overwrite=True) as folder:
        (folder / output.ROC_PLOT).write_text("half")
        raise KeyboardInterrupt


def test_earlier_output_outlives_a_failed_run(earlier):
    with pytest.raises(KeyboardInterrupt):
        fail(earlier)
    assert content(earlier) == {output.ROC_PLOT: "old"}
    assert list(earlier.parent.iterdir()) == [earlier]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_replaced(earlier, overwrite):
    (earlier / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"does not write \(thesis.tex, for one\)"):
        write(earlier, overwrite)
    assert content(earlier) == {output.ROC_PLOT: "old", "thesis.tex": "mine"}


def test_a_file_is_never_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        write(path, overwrite=True)
    assert path.read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    out = tmp_path / "empty"
    out.mkdir()
    write(out, overwrite=False)
    assert content(out) == {output.ROC_PLOT: "new"}
