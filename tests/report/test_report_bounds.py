"""Reports: bounds on what is shown, and what is said to be left out."""

import re

import numpy as np
import pytest
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.report import Bounds, write_report
from pydvl_datainf.report import influences as influences_module
from pydvl_datainf.report import summary as summary_module
from pydvl_datainf.report.columns import column_of, length_limit
from report_pages import M, N, Page, column, ids_shown, made, samples


@pytest.mark.usefixtures("without_pictures")
def test_what_is_left_out_is_said(tmp_path, plain):
    bounds = Bounds(k=2, tests=3, suspects=1, characters=5000)
    page = Page(write_report(plain, tmp_path / "report.html", bounds=bounds))
    assert ids_shown(page, "test") == [0, 1, 2]
    assert len(ids_shown(page, "train")) < N
    assert "3 of 5 test samples, and for each the 2 most helpful" in page.text
    assert "Left out: the last 2 test samples (more with --max-test)." in page.text
    assert re.search(
        r"Left out: the end of [1-3] texts? of more than \d[\d,]* characters", page.text
    )
    cut = [text for text in column(page, "train", "text") if text.endswith("www…")]
    assert cut
    assert len(cut[0]) < 3000


def test_nothing_is_left_out_silently_or_said_for_nothing(plain_page):
    assert "Left out" not in plain_page.text
    assert "All 5 test samples" in plain_page.text


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_kept_fewer_says_so(tmp_path):
    run = made(tmp_path / "run.zarr", top_k=3)
    page = Page(write_report(run, tmp_path / "report.html"))
    assert "10 training samples at either end: the run kept 3" in page.text


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("most", "said"), [(2 * M * N, False), (2 * M * N - 1, True)])
def test_shares_that_are_too_many_are_said_to_be_left_out(tmp_path, monkeypatch, most, said):
    for module in (influences_module, summary_module):
        monkeypatch.setattr(module, "MOST_SCORES", most)
    run = made(tmp_path / "run.zarr", by_block=True)
    page = Page(write_report(run, tmp_path / "report.html"))
    sentence = f"Left out: shares of blocks in the influences: {2 * M * N} influences by block"
    assert (sentence in page.text) == said
    assert ("shares" in page.data["blocks"]) != said


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("name", "end"), [("image", ""), ("picture", ".png")])
def test_long_texts_are_no_paths_of_images_and_are_cut(tmp_path, name, end):
    told = {"train": {name: [f"{i}" + "w" * 10**5 + end for i in range(N)]}}
    run = made(tmp_path / "run.zarr", metadata=told)
    path = write_report(run, tmp_path / "report.html", bounds=Bounds(characters=10**4))
    page = Page(path)
    assert max(len(text) for text in column(page, "train", name)) == 251
    assert f"Left out: the end of {N} texts of more than 250 characters" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_ids_and_paths_that_begin_alike_stay_apart_when_cut(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    names = {"train": N, "test": M}
    ids = {side: ["w" * 300 + f"{i}" for i in range(count)] for side, count in names.items()}
    paths = ["./" * 100 + f"{name}.png" for name in "ab"]
    told = {"train": {"image": [paths[i % 2] for i in range(N)]}}
    run = made(tmp_path / "run.zarr", ids=ids, metadata=told)
    bounds = Bounds(characters=10)
    page = Page(write_report(run, tmp_path / "report.html", bounds=bounds, images=tmp_path))
    assert ids_shown(page, "test") == ["w" * 100 + f"… (at {i})" for i in range(M)]
    assert len(set(ids_shown(page, "train"))) == N
    shown = ["./" * 50 + f"… (at {i})" for i in range(2)]
    assert column(page, "train", "image") == [shown[i % 2] for i in range(N)]
    assert list(page.data["train"]["images"]) == shown[:1]  # there is no b.png


def test_long_texts_are_cut_first():
    columns = [np.array(["a" * 90, "b" * 900, "c" * 9000], dtype=object), np.arange(3)]
    assert length_limit(columns, 9990) == 20_000
    assert length_limit(columns, 9989) == 5_000
    assert length_limit(columns, 1500) == 500
    assert length_limit(columns, 0) == 100
    cut = column_of("text", columns[0], np.array([0, 2]), 100)
    assert cut.values == ["a" * 90, "c" * 100 + "…"]
    assert cut.cut == [1]


@pytest.mark.usefixtures("without_pictures")
def test_a_large_run_stays_below_five_megabytes(tmp_path):
    n, m, rng = 2000, 500, np.random.default_rng(0)
    words = np.array(["influence", "sample", "gradient", "block", "<b>", "über", "loss"])

    def texts(count):
        return [" ".join(rng.choice(words, 150)) for _ in range(count)]

    run = run_influences(
        DataInfInfluence(nn.Linear(3, 2), F.cross_entropy),
        tuple(t.float() if i == 0 else t for i, t in enumerate(samples(m, 2))),
        tuple(t.float() if i == 0 else t for i, t in enumerate(samples(n, 1))),
        tmp_path / "run.zarr",
        metadata={side: {"text": texts(count)} for side, count in (("train", n), ("test", m))},
        progress=False,
    )
    path = write_report(run, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    assert "All 500 test samples" in Page(path).text


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"tests": 0}, {"suspects": -1}, {"characters": -1}, {"image_bytes": -5}]
)
def test_bounds_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        Bounds(**wrong)
