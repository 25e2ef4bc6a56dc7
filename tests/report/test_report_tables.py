"""Reports: what they say of blocks, methods and labels."""

import numpy as np
import pytest
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, ExactInfluence, HessianFreeInfluence, run_influences
from pydvl_datainf.report import write_report
from pydvl_datainf.report.labels import LONGEST, label_counts
from report_pages import LABELS, METADATA, N, Page, made, network, samples


def test_blocks_have_their_width_damping_and_error(plain_page, plain):
    error = plain.approximation_error
    assert plain_page.data["blocks"] == {
        "names": ["0", "2"],
        "labels": ["0", "2"],
        "widths": [16, 10],
        "damping": list(plain.damping.values()),
        "errors": error.errors.tolist(),
        "cosines": error.cosines.tolist(),
    }
    assert (
        f"{error.rank_correlation:.2f} rank correlation with the exact inverse" in plain_page.text
    )
    assert (
        'What to make of these numbers: docs/trust.md, "How far to trust a score"'
        in plain_page.text
    )
    assert "Those with the largest positive influence." in plain_page.text
    assert f"over {error.n} training and {error.m} test samples of this run" in plain_page.text


def test_blocks_have_their_share_where_the_run_keeps_scores_by_block(tmp_path, plain_page):
    run = made(tmp_path / "run.zarr", by_block=True)
    shown = Page(write_report(run, tmp_path / "report.html"))
    scores = np.asarray(run.scores[...])
    total = scores.sum(1)
    expected = [(scores[:, i] * total).sum() / (total**2).sum() for i in range(2)]
    np.testing.assert_allclose(shown.data["blocks"]["shares"], expected, rtol=1e-9)
    assert sum(expected) == pytest.approx(1)
    assert "What share each block has" in shown.text
    assert "shares" not in plain_page.data["blocks"]


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_compared_nothing_tells_how_to(tmp_path):
    page = Page(write_report(made(tmp_path / "run.zarr"), tmp_path / "report.html"))
    assert "not measured agreement with the exact inverse" in page.text
    assert "exact_sample=256" in page.text
    assert "errors" not in page.data["blocks"]


@pytest.mark.usefixtures("without_pictures")
def test_a_query_tells_that_the_run_of_its_rows_can_be_compared(tmp_path):
    run = made(tmp_path / "run.zarr", rows="zarr", exact_sample=N)
    model = DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    query = run_influences(model, samples(2, 3), run, tmp_path / "query.zarr", progress=False)
    page = Page(write_report(query, tmp_path / "report.html"))
    assert "have the run whose rows it uses compared (exact_sample=256)" in page.text
    assert "call run_influences again" not in page.text


@pytest.mark.parametrize(
    ("kind", "settings", "said", "damped"),
    [
        (ExactInfluence, {}, "Each block has its exact damped inverse", True),
        (HessianFreeInfluence, {}, "They take no inverse", False),
        (HessianFreeInfluence, {"scaled": True}, "Order: the influences on a test sample", True),
    ],
)
def test_other_methods(tmp_path, kind, settings, said, damped):
    influence = kind(network(), F.cross_entropy, **settings)
    run = made(tmp_path / "run.zarr", influence, exact_sample=10)
    page = Page(write_report(run, tmp_path / "report.html"))
    assert said in page.text
    assert ("damping" in page.data["blocks"]) == damped
    assert "DataInf is exact for one" not in page.text


def test_labels_are_counted(plain_page, plain):
    mean = np.asarray(plain.scores[...]).mean(0)
    labels = np.array(METADATA["train"]["label"], dtype=object)
    rows = plain_page.data["labels"]["rows"]
    assert [name for name, *_ in rows] == sorted(
        LABELS, key=lambda name: mean[labels == name].mean()
    )
    for name, count, average, suspects in rows:
        assert count == suspects == 8  # all are among the 50 most harmful
        assert average == pytest.approx(mean[labels == name].mean(), rel=1e-12)
    few = label_counts({"label": labels}, mean, np.array([0, 1, 3, 6]))
    assert {row[0]: row[3] for row in few.rows} == {"rotten": 3, "fresh": 1, "<b>odd</b>": 0}


@pytest.mark.parametrize(
    "values",
    [
        np.arange(10.0),
        np.array(["same"] * 10, dtype=object),
        np.array([str(i) for i in range(10)], dtype=object),
    ],
    ids=["numbers", "one label", "a label each"],
)
def test_what_is_no_class_label_is_not_counted(values):
    assert label_counts({"label": values}, np.zeros(10), np.arange(3)) is None


def test_labels_are_counted_whole_and_named_apart():
    alike = ["w" * 45 + end for end in "ab"]
    labels = [*alike, "", "(empty)", "w" * LONGEST, "w" * LONGEST + "…"] * 2
    counts = label_counts(
        {"label": np.array(labels, dtype=object)}, np.arange(12.0), np.array([0, 6, 2])
    )
    found = {name: (number, mean, suspects) for name, number, mean, suspects in counts.rows}
    cut = "w" * LONGEST + "…"
    assert found == {
        cut: (2, 3.0, 2),
        f"{cut} (2)": (2, 4.0, 0),
        "(empty) (2)": (2, 5.0, 1),
        "(empty)": (2, 6.0, 0),
        "w" * LONGEST: (2, 7.0, 0),
        f"{cut} (3)": (2, 8.0, 0),
    }
    assert [*counts.labels[:4]] == [cut, f"{cut} (2)", "(empty) (2)", "(empty)"]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("n", "different", "said"),
    [(70, 31, True), (70, 30, False), (24, 13, True), (24, 12, False)],
)
def test_labels_that_are_too_many_are_said_to_be_left_out(tmp_path, n, different, said):
    told = {"train": {"label": [i % different for i in range(n)]}}
    page = Page(
        write_report(made(tmp_path / "run.zarr", n=n, metadata=told), tmp_path / "report.html")
    )
    sentence = f"Left out: counts by label: {different} different labels among {n} training"
    assert (sentence in page.text) == said
    assert (page.data["labels"] is None) == said
