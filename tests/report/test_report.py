"""Reports: one page of HTML with what the run holds, whatever the run and its texts are."""

import json
import re
import shutil
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    InfluenceRun,
    StoreError,
    run_influences,
)
from pydvl_datainf.cli import main
from pydvl_datainf.report import Bounds, ReportExistsError, extra, is_report, write_report
from pydvl_datainf.report import influences as influences_module
from pydvl_datainf.report import pictures as pictures_module
from pydvl_datainf.report import summary as summary_module
from pydvl_datainf.report.columns import column_of, kind_of, length_limit
from pydvl_datainf.report.file import write_whole
from pydvl_datainf.report.labels import LONGEST, label_counts
from pydvl_datainf.report.pictures import (
    MOST_BLOCKS,
    blocks_picture,
    shares_picture,
    shown_blocks,
)
from pydvl_datainf.report.summary import place_name
from pydvl_datainf.report.thumbnails import SIDE, Thumbnails, small_copy
from pydvl_datainf.runner import tasks

N, M = 24, 5
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 2'>",
    "<!-- <script>",
    "a\u2028b\u2029c & \"d\" 'e' \\u003c \x00 \x1b[31m",
    "",
    "\u202eright to left\u202c, שלום, 漢字, 🙂",
    "w" * 3000,
    "{{ 7 * 7 }} {% raw %}",
]
LABELS = ["rotten", "fresh", "<b>odd</b>"]
METADATA = {
    "train": {
        "text": [f"{HOSTILE[i % len(HOSTILE)]}" for i in range(N)],
        "label": [LABELS[i % 3] for i in range(N)],
        "flipped": [i % 5 == 3 for i in range(N)],
        "loss": [0.125 * i for i in range(N - 4)] + [np.nan, np.inf, -np.inf, -0.0],
        "number": [2**60 + i for i in range(N)],
    },
    "test": {"text": HOSTILE[:M], "label": [1, 0, 1, 0, 1]},
    "run": {"purpose": HOSTILE[1]},
}


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (length,), generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def made(store, influence=None, n=N, m=M, **wishes):
    usual = {"tile": (2, 7), "metadata": METADATA, "progress": False}
    influence = influence or DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    return run_influences(influence, samples(m, 2), samples(n, 1), store, **usual | wishes)


class Page(HTMLParser):
    """A page as a browser's parser splits it: elements with their attributes, texts, scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self.styles, self.texts = [], [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        (policy,) = (a for n, a in self.elements if a.get("http-equiv"))
        self.policy = policy["content"]
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, text):
        kinds = {"script": self.scripts, "style": self.styles}
        last = self.elements[-1][0] if self.elements else ""
        kinds.get(last if self.cdata_elem else "", self.texts).append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing takes most of the time of a small report."""
    empty = pictures_module.Picture("data:,", "data:,", "not drawn")
    monkeypatch.setattr(pictures_module, "drawn", lambda *arguments: empty)


@pytest.fixture(scope="module")
def plain(folder):
    return made(folder / "plain.zarr", self_influence=True, exact_sample=N)


@pytest.fixture(scope="module")
def page(folder, plain):
    return Page(write_report(plain, folder / "plain.html"))


def ids_shown(page, side):
    return page.data[side]["ids"]["values"]


def column(page, side, name):
    (found,) = (c for c in page.data[side]["columns"] if c["name"] == name)
    return found["values"]


def all_texts(page, side, name):
    """Values of a column by id."""
    return dict(zip(ids_shown(page, side), column(page, side, name), strict=True))


# What is on the page

KINDS = {
    "plain": {},
    "named": {
        "ids": {"train": [f"t<{i}>" for i in range(N)], "test": [f"q{i}" for i in range(M)]},
        "top_k": 3,
    },
    "by block": {"by_block": True},
    "groups": {"query_groups": ["a", "b", "a", "b", "c"], "metadata": None},
    "bare": {"metadata": None},
}


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_helpful_and_harmful_samples_are_those_of_the_run(tmp_path, kind):
    run = made(tmp_path / "run.zarr", **KINDS[kind])
    page = Page(write_report(run, tmp_path / "report.html", bounds=Bounds(k=4)))
    k = {"named": 3}.get(kind, 4)
    assert ids_shown(page, "test") == run.test_ids.tolist()
    train = np.array(ids_shown(page, "train"), dtype=object)
    for end, shown in page.data["tops"].items():
        ids, influences = run.top(k, most=end)
        np.testing.assert_array_equal(train[np.array(shown["rows"])], ids)
        np.testing.assert_array_equal(np.array(shown["influences"]), influences)
    assert page.data["tops"]["helpful"]["influences"] != page.data["tops"]["harmful"]["influences"]


@pytest.mark.usefixtures("without_pictures")
def test_single_precision_comes_back_as_it_was(tmp_path):
    influence = DataInfInfluence(network().float(), F.cross_entropy)
    x, y = samples(N, 1)
    run = run_influences(influence, (x.float()[:4], y[:4]), (x.float(), y), tmp_path / "run.zarr")
    page = Page(write_report(run, tmp_path / "report.html"))
    shown = np.array(page.data["tops"]["helpful"]["influences"], dtype=np.float32)
    np.testing.assert_array_equal(shown, run.top(10)[1])
    assert max(len(str(v)) for v in page.data["tops"]["helpful"]["influences"][0]) < 16


@pytest.mark.usefixtures("without_pictures")
def test_measures_and_suspects_are_those_of_the_run(tmp_path, plain):
    page = Page(write_report(plain, tmp_path / "report.html", bounds=Bounds(k=1, suspects=3)))
    shown = np.array(ids_shown(page, "train"))
    scores = np.asarray(plain.scores[...])
    mean, own = scores.mean(0), plain.self_influence()
    relative, loss = mean / np.sqrt(own), plain.training_loss()
    suspicion = (rankdata(loss) + rankdata(-relative)) / 2
    expected = {
        "mean influence": mean,
        "median influence": np.median(scores, axis=0),
        "relative influence": relative,
        "self-influence": own,
        "training loss": loss,
        "suspicion": suspicion,
    }
    assert list(page.data["measures"]) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(page.data["measures"][name], values[shown], rtol=1e-9)
    harms = [mean, np.median(scores, axis=0), relative, -own, -loss, -suspicion]
    threes = {np.argsort(v, kind="stable")[:3].tobytes() for v in harms}
    assert len(threes) > 1  # premise: the measures disagree
    suspects = set(np.concatenate([np.frombuffer(s, dtype=np.intp) for s in threes]).tolist())
    by_mean = sorted(suspects, key=lambda i: mean[i])
    assert shown[page.data["suspects"]].tolist() == by_mean


@pytest.mark.usefixtures("without_pictures")
def test_measures_that_would_take_long_are_not_computed(tmp_path):
    run = made(tmp_path / "run.zarr", rows="zarr")
    page = Page(write_report(run, tmp_path / "report.html"))
    measures = ["mean influence", "median influence", "training loss"]
    assert list(page.data["measures"]) == measures
    assert "self_influence" not in InfluenceRun(tmp_path / "run.zarr").store


@pytest.mark.usefixtures("without_pictures")
def test_self_influences_of_a_query_are_those_of_its_rows(tmp_path):
    run = made(tmp_path / "run.zarr", rows="zarr", self_influence=True)
    model = DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    query = run_influences(model, samples(2, 3), run, tmp_path / "query.zarr", progress=False)
    page = Page(write_report(query, tmp_path / "report.html"))
    shown = np.array(ids_shown(page, "train"))
    np.testing.assert_array_equal(
        page.data["measures"]["self-influence"], run.self_influence()[shown]
    )
    shutil.rmtree(tmp_path / "run.zarr")
    gone = Page(write_report(query, tmp_path / "report.html"))
    assert list(gone.data["measures"]) == ["mean influence", "median influence"]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("n", "other"), [(N, "training data"), (N + 2, "training samples")])
def test_self_influences_of_another_run_are_not_shown(tmp_path, n, other):
    run = made(tmp_path / "run.zarr", rows="zarr", self_influence=True)
    model = DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    query = run_influences(model, samples(2, 3), run, tmp_path / "query.zarr", progress=False)
    run_influences(
        model,
        samples(M, 2),
        samples(n, 7),
        tmp_path / "run.zarr",
        rows="zarr",
        self_influence=True,
        overwrite=True,
        progress=False,
    )
    with pytest.raises(StoreError, match=f"{other}.* differ"):
        query.self_influence()
    page = Page(write_report(query, tmp_path / "report.html"))
    assert list(page.data["measures"]) == ["mean influence", "median influence"]


@pytest.mark.usefixtures("without_pictures")
def test_one_sample_on_one_sample(tmp_path):
    run = made(tmp_path / "run.zarr", n=1, m=1, metadata=None, self_influence=True)
    page = Page(write_report(run, tmp_path / "report.html"))
    influence = float(run.scores[0, 0])
    assert page.data["tops"]["helpful"] == {"rows": [[0]], "influences": [[influence]]}
    assert "All 1 test sample, and" in page.text


def test_facts_are_those_of_the_info_command(page, plain):
    for fact in (
        "Training samples 24",
        "cross_entropy",
        "DataInf: mean over training samples of (g gᵀ + λ I)⁻¹, block by block",
        "positive: more weight on the training sample lowers the test sample's loss",
        f"zarr {plain.attrs['versions']['zarr']}",
        plain.attrs["created"],
        "purpose",
    ):
        assert fact in page.text


def test_the_path_of_the_store_stays_at_home(page, folder):
    assert str(folder) not in page.source
    assert "Influence report: plain.zarr" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_the_path_of_the_rows_of_a_query_stays_at_home(tmp_path):
    run = made(tmp_path / "base.zarr", rows="zarr")
    model = DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    query = run_influences(model, samples(2, 3), run, tmp_path / "query.zarr", progress=False)
    assert query.attrs["rows_in"] == str(tmp_path / "base.zarr")  # premise
    page = Page(write_report(query, tmp_path / "report.html"))
    assert "those in base.zarr" in page.text
    assert str(tmp_path) not in page.source
    assert query.attrs["rows_in"] == str(tmp_path / "base.zarr")  # as it was


@pytest.mark.usefixtures("without_pictures")
def test_the_address_of_a_store_and_its_password_stay_at_home(tmp_path):
    url = "memory://someone:SECRET@host/folder/run.zarr"
    page = Page(write_report(made(url), tmp_path / "report.html"))
    assert "Influence report: run.zarr" in page.text
    for private in ("SECRET", "someone", "folder/"):
        assert private not in page.source


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/me/run.zarr", "run.zarr"),
        ("s3://bucket/a/run.zarr/", "run.zarr"),
        ("https://host/run.zarr?token=SECRET/x", "run.zarr"),
        ("https://me:SECRET@host/run.zarr#SECRET@b", "run.zarr"),
        ("simplecache::s3://me:SECRET@bucket/run.zarr", "run.zarr"),
        ("memory://run.zarr", "run.zarr"),
        ("memory://me:SECRET@host", "host"),
        ("memory://me:SECRET?@host/run.zarr", "a store"),
        ("memory://me:SE/CRET@host", "host"),
        ("memory://", "a store"),
    ],
)
def test_only_the_name_of_a_place_is_told(place, name):
    assert place_name(place) == name


def test_blocks_have_their_width_damping_and_error(page, plain):
    error = plain.approximation_error
    assert page.data["blocks"] == {
        "names": ["0", "2"],
        "labels": ["0", "2"],
        "widths": [16, 10],
        "damping": list(plain.damping.values()),
        "errors": error.errors.tolist(),
        "cosines": error.cosines.tolist(),
    }
    assert f"{error.rank_correlation:.2f} rank correlation with the exact inverse" in page.text
    assert 'What to make of these numbers: docs/trust.md, "How far to trust a score"' in page.text
    assert "where it is negative, none of them helps any more" in page.text
    assert f"over {error.n} training and {error.m} test samples of this run" in page.text


def test_blocks_have_their_share_where_the_run_keeps_scores_by_block(tmp_path, page):
    run = made(tmp_path / "run.zarr", by_block=True)
    shown = Page(write_report(run, tmp_path / "report.html"))
    scores = np.asarray(run.scores[...])
    total = scores.sum(1)
    expected = [(scores[:, i] * total).sum() / (total**2).sum() for i in range(2)]
    np.testing.assert_allclose(shown.data["blocks"]["shares"], expected, rtol=1e-9)
    assert sum(expected) == pytest.approx(1)
    assert "What share each block has" in shown.text
    assert "shares" not in page.data["blocks"]


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


def test_labels_are_counted(page, plain):
    mean = np.asarray(plain.scores[...]).mean(0)
    labels = np.array(METADATA["train"]["label"], dtype=object)
    rows = page.data["labels"]["rows"]
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


# Texts are texts


def test_texts_come_back_whole(page):
    shown = all_texts(page, "train", "text")
    assert [shown[i] for i in range(len(HOSTILE))] == HOSTILE


def test_nothing_of_the_data_is_markup(page):
    assert [name for name, _ in page.elements].count("script") == 2
    assert [attributes.get("type") for name, attributes in page.elements if name == "script"] == [
        "application/json",
        "module",
    ]
    images = [attributes for name, attributes in page.elements if name == "img"]
    assert all(a["src"].startswith("data:image/svg+xml;base64,") for a in images)
    assert not [n for n, a in page.elements for key in a if key.startswith("on")]
    for name in ("b", "--"):
        assert name not in [element for element, _ in page.elements]
    assert "<b>odd</b>" in page.texts  # in the table of labels
    assert HOSTILE[1] in page.text.replace('\\"', '"')  # told of the run, as JSON


def test_no_character_of_the_data_ends_the_script(page):
    for character in "<>&\u2028\u2029":
        assert character not in page.scripts[0]


def test_the_policy_allows_this_script_and_this_style_alone(page):
    def allowed(text):
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    policy = dict(part.split(" ", 1) for part in page.policy.split("; "))
    (style,) = page.styles
    assert policy == {
        "default-src": "'none'",
        "script-src": allowed(page.scripts[1]),
        "style-src": allowed(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert allowed(page.scripts[1] + " ") != policy["script-src"]


def test_nothing_is_fetched(page):
    sources = [
        (name, value)
        for name, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data")
    ]
    assert len(sources) > 10
    assert [s for s in sources if not s[1].startswith(("data:", "#"))] == []


def test_the_page_says_in_which_language_it_is_and_its_headings_are_in_order(page):
    assert ("html", {"lang": "en"}) in page.elements
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert max(b - a for a, b in pairwise(levels)) == 1
    assert levels.count(1) == 1


def test_numbers_that_json_lacks_are_told_as_texts(page):
    loss = all_texts(page, "train", "loss")
    assert [loss[i] for i in range(N - 4, N)] == ["NaN", "Infinity", "-Infinity", 0]
    assert loss[3] == 0.375
    assert str(loss[N - 1]) == "0.0"  # not -0.0
    assert all_texts(page, "train", "number")[3] == str(2**60 + 3)


def test_the_same_run_gives_the_same_bytes(folder, page, plain, tmp_path):
    write_report(plain, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (folder / "plain.html").read_bytes()


# Bounds


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


def test_nothing_is_left_out_silently_or_said_for_nothing(page):
    assert "Left out" not in page.text
    assert "All 5 test samples" in page.text


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


@pytest.mark.parametrize(("by_error", "expected"), [(False, "ends"), (True, "errors")])
def test_of_many_blocks_the_picture_shows_the_ends(plain, by_error, expected):
    values = np.random.default_rng(0).permutation(200) + 1.0
    error = type("Error", (), {"errors": values})() if by_error else None
    shown = np.array(shown_blocks(values, error))
    assert len(shown) == MOST_BLOCKS
    assert (np.diff(shown) > 0).all()
    half = MOST_BLOCKS // 2
    wanted = {
        "errors": range(200 - MOST_BLOCKS + 1, 201),
        "ends": [*range(1, half + 1), *range(200 - half + 1, 201)],
    }[expected]
    assert sorted(values[shown]) == list(wanted)


def svg_of(picture):
    return ElementTree.fromstring(b64decode(picture.light.partition(",")[2]))


def axes_widths(picture):
    """Widths of the backgrounds of axes, in points."""
    found = svg_of(picture).findall(".//{*}g[@id='patch_2']/{*}path")
    corners = [np.array(re.findall(r"[\d.]+", path.get("d")), dtype=float) for path in found]
    return [np.ptp(numbers[::2]) for numbers in corners]


@pytest.mark.parametrize(
    "draw",
    [
        lambda names: blocks_picture(names, np.array([1.0, 2.0]), None),
        lambda names: shares_picture(names, np.arange(24.0).reshape(3, 2, 4)),
    ],
    ids=["damping", "shares"],
)
def test_long_names_leave_room_for_the_picture(draw):
    (short,), (long,) = (axes_widths(draw(["q" * k, "r" * k])) for k in (60, 300))
    assert short > 50  # premise: names of this length leave room
    assert long == pytest.approx(short, rel=0.1)


@pytest.mark.parametrize("character", ["\ufffe", "\uffff", "\x01"])
def test_pictures_of_any_names_are_valid_svg(character):
    picture = blocks_picture([f"a{character}", "b"], np.array([1.0, 2.0]), None)
    assert svg_of(picture).tag.endswith("svg")


# Images


@pytest.fixture
def pictures(tmp_path):
    """A folder with images, and what is none."""
    (tmp_path / "data").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 6), (50 * i, 100, 0)).save(tmp_path / "data" / f"{i}.png")
    Image.new("RGBA", (600, 300), (255, 0, 0, 128)).save(tmp_path / "data" / "large.png")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    (tmp_path / "data" / "text.png").write_text("<svg onload='window.hacked = 1'/>")
    return tmp_path


def decoded(url):
    head, _, content = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(BytesIO(b64decode(content)))


@pytest.mark.usefixtures("without_pictures")
def test_images_are_embedded_where_they_can_be_read(pictures):
    names = ["0.png", "1.png", "2.png", "large.png", "broken.png", "text.png", "gone.png"]
    (pictures / "other").mkdir()
    Image.new("L", (4, 4), 7).save(pictures / "other" / "1.png")
    told = {
        "train": {"image": [names[i % len(names)] for i in range(N)]},
        "test": {"image": names[:M]},
        "run": {"job": {"train": "data/a.csv", "test": "other/b.csv"}},
    }
    run = made(pictures / "run.zarr", metadata=told)
    # From the folder of the job file on, as `pydvl-datainf run` stores them.
    page = Page(write_report(run, pictures / "report.html", images=pictures))
    train, test = page.data["train"]["images"], page.data["test"]["images"]
    assert set(train) == {"0.png", "1.png", "2.png", "large.png"}
    assert set(test) == {"1.png"}  # each side from the folder of its own data
    for urls, expected in ((train, [50, 100, 0]), (test, [7, 7, 7])):
        pixels = np.asarray(decoded(urls["1.png"]).convert("RGB"))
        np.testing.assert_array_equal(pixels[2, 3], expected)
    large = decoded(train["large.png"])
    assert large.size == (SIDE, SIDE // 2)
    np.testing.assert_allclose(np.asarray(large)[20, 20], [255, 127, 127], atol=4)  # on white
    assert all_texts(page, "train", "image")[5] == "text.png"
    assert "Left out: 7 images that cannot be read" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_images_without_a_job_are_meant_from_the_given_folder(pictures):
    told = {"train": {"image": ["0.png"] * N}, "test": {"image": ["data/0.png"] * M}}
    run = made(pictures / "run.zarr", metadata=told)
    page = Page(write_report(run, pictures / "report.html", images=pictures / "data"))
    assert set(page.data["train"]["images"]) == {"0.png"}
    assert page.data["test"]["images"] == {}


def test_images_stop_at_their_budget(pictures):
    one = len(small_copy(pictures / "data/0.png"))
    thumbnails = Thumbnails(2 * one + 20, pictures)
    urls = thumbnails.urls(["0.png", "1.png", "0.png", "2.png", ""], [pictures / "data"])
    assert list(urls) == ["0.png", "1.png"]
    assert (thumbnails.left_out, thumbnails.unreadable) == (1, 0)


def test_an_image_too_large_to_be_one_is_not_read(pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    thumbnails = Thumbnails(10**6, pictures)
    assert set(thumbnails.urls(["large.png", "0.png"], [pictures / "data"])) == {"0.png"}


@pytest.mark.usefixtures("without_pictures")
def test_images_outside_the_folder_stay_there(pictures):
    inside = pictures / "data"
    Image.new("RGB", (8, 6)).save(pictures / "private.png")
    (inside / "link.png").symlink_to(pictures / "private.png")
    (inside / "inner.png").symlink_to(inside / "1.png")
    outside = [str(pictures / "private.png"), "../private.png", "link.png", "no/../../private.png"]
    (inside / "no").mkdir()
    within = [str(inside / "0.png"), "../data/0.png", "inner.png"]
    names = outside + within
    told = {
        "train": {"image": [names[i % len(names)] for i in range(N)]},
        "run": {"job": {"train": "../a.csv"}},  # which may be a stranger's, too
    }
    run = made(pictures / "run.zarr", metadata=told)
    page = Page(write_report(run, pictures / "report.html", images=inside))
    assert set(page.data["train"]["images"]) == set(within)
    assert "Left out: 4 images that cannot be read, or lie outside the folder" in page.text
    anywhere = Page(write_report(run, pictures / "report.html", images="/"))
    assert set(anywhere.data["train"]["images"]) == {outside[0], within[0]}


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("image", ["a", "b"], "image"),
        ("picture", ["a.PNG", "b.jpeg"], "image"),
        ("picture", ["a.png", "b"], "text"),
        ("picture", ["", ""], "text"),
        ("image", [1, 2], "integer"),
        ("image", ["a", "b" * 1000], "image"),
        ("image", ["a", "b" * 1001], "text"),
        ("picture", ["a.png", "b" * 997 + ".png"], "text"),
    ],
)
def test_kinds_of_columns(name, values, kind):
    array = np.array(values, dtype=None if kind == "integer" else object)
    assert kind_of(name, array) == kind


# Files


def written(path):
    path.write_text("<html>mine")
    return path


@pytest.mark.usefixtures("without_pictures")
def test_a_file_that_is_no_report_is_kept(tmp_path, plain):
    path = written(tmp_path / "report.html")
    with pytest.raises(ReportExistsError, match="is no report of this package"):
        write_report(plain, path)
    assert path.read_text() == "<html>mine"
    write_report(plain, path, overwrite=True)
    assert is_report(path)


@pytest.mark.usefixtures("without_pictures")
def test_an_earlier_report_is_replaced(tmp_path, plain):
    path = write_report(plain, tmp_path / "new" / "report.html")
    other = made(tmp_path / "other.zarr", m=M - 1, metadata=None)
    write_report(other, path)
    assert "All 4 test samples" in Page(path).text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_replaced(tmp_path, plain, overwrite):
    with pytest.raises(ReportExistsError, match="is a folder"):
        write_report(plain, tmp_path, overwrite=overwrite)


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = written(tmp_path / "report.html")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_text() == "<html>mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("without_pictures")
def test_a_link_stays_one(tmp_path, plain):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "elsewhere" / "report.html")
    write_report(plain, link)
    assert link.is_symlink()
    assert is_report(tmp_path / "elsewhere" / "report.html")


# What is refused


def stop(*arguments):
    raise KeyboardInterrupt


def test_a_run_that_is_not_complete_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_piece", stop)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=r"is not complete .* the same arguments to go on"):
        write_report(tmp_path / "run.zarr", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_run_is_refused(tmp_path, folder, plain):
    shutil.copytree(folder / "plain.zarr", tmp_path / "run.zarr")
    chunk = tmp_path / "run.zarr/scores/c/0/0"
    damaged = bytearray(chunk.read_bytes())
    damaged[9] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(StoreError, match="scores"):
        write_report(tmp_path / "run.zarr", tmp_path / "report.html")


def test_missing_packages_are_named_with_what_to_install(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(extra, "PACKAGES", ("torch", "no_such_one", "no_such_two"))
    with pytest.raises(ModuleNotFoundError) as raised:
        write_report(plain, tmp_path / "report.html")
    message = "A report needs no_such_one, no_such_two, not installed here"
    assert str(raised.value) == f"{message}: pip install 'pydvl-datainf[report]'"


# On the command line


def invoke(*arguments):
    return CliRunner().invoke(main, ["report", *(str(a) for a in arguments)])


def test_the_command_writes_the_same_page(tmp_path, folder, page):
    result = invoke(folder / "plain.zarr", "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Written to {tmp_path / 'report.html'}.\n"
    assert (tmp_path / "report.html").read_bytes() == (folder / "plain.html").read_bytes()


@pytest.mark.usefixtures("without_pictures")
def test_the_command_takes_bounds(tmp_path, folder, plain):
    path = tmp_path / "report.html"
    options = ("--k", 2, "--max-test", 3, "--suspects", 1, "--images", tmp_path)
    assert invoke(folder / "plain.zarr", "-o", path, *options).exit_code == 0
    page = Page(path)
    assert len(ids_shown(page, "test")) == 3
    assert len(page.data["tops"]["helpful"]["rows"][0]) == 2
    assert "The 1 most suspicious by any" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_the_command_refuses_with_a_message(tmp_path, folder, plain):
    path = written(tmp_path / "report.html")
    refused = invoke(folder / "plain.zarr", "-o", path)
    assert refused.exit_code == 1
    assert "or replace the file with --overwrite." in refused.stderr
    assert path.read_text() == "<html>mine"
    assert invoke(folder / "plain.zarr", "-o", path, "--overwrite").exit_code == 0
    missing = invoke(tmp_path / "none.zarr", "-o", path)
    assert (missing.exit_code, missing.stderr) == (
        1,
        f"Error: There is no store at {tmp_path / 'none.zarr'}.\n",
    )


def test_templates_are_part_of_the_package():
    declared = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "pydvl_datainf.report = templates/*" in declared
