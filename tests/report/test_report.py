"""Reports: influences, measures and facts are those of the run, and private paths stay at home."""

import shutil

import numpy as np
import pytest
from scipy.stats import rankdata
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, InfluenceRun, StoreError, run_influences
from pydvl_datainf.report import Bounds, write_report
from pydvl_datainf.report.summary import place_name
from report_pages import M, N, Page, ids_shown, made, network, samples

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


def test_facts_are_those_of_the_info_command(plain_page, plain):
    for fact in (
        "Training samples 24",
        "cross_entropy",
        "DataInf: mean over training samples of (g gᵀ + λ I)⁻¹, block by block",
        "positive: more weight on the training sample lowers the test sample's loss",
        f"zarr {plain.attrs['versions']['zarr']}",
        plain.attrs["created"],
        "purpose",
    ):
        assert fact in plain_page.text


def test_the_path_of_the_store_stays_at_home(plain_page, folder):
    assert str(folder) not in plain_page.source
    assert "Influence report: plain.zarr" in plain_page.text


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
