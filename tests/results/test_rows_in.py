"""Where the training rows of a further query are read: beside its store, or where one allows it."""

import json
import os
import shutil

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from zarr.storage import FsspecStore, LocalStore

from pydvl_datainf import StoreError, StoreExistsError, run_influences
from pydvl_datainf.cli import main
from pydvl_datainf.report import write_report
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from stopped_run import build, loader, run, samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with rows, and queries of it beside it and elsewhere."""
    folder = tmp_path_factory.mktemp("made")
    parent = run(folder / "here/run.zarr", rows="zarr", self_influence=True)
    for place in ("here", "there"):
        query(parent, folder / place / "query.zarr")
    return folder


def query(parent, store):
    return run_influences(build(), loader(samples(4, 3), 4), parent, store, progress=False)


@pytest.fixture
def own(made):
    return InfluenceRun(made / "here/run.zarr").self_influence()


@pytest.fixture
def led_to(made, tmp_path):
    """A query that says that its rows are in any place."""

    def make(place):
        store = shutil.copytree(made / "here/query.zarr", tmp_path / "foreign/query.zarr")
        content = json.loads((store / "zarr.json").read_text())
        content["attributes"]["rows_in"] = str(place)
        (store / "zarr.json").write_text(json.dumps(content))
        return store

    return make


@pytest.fixture
def visited(monkeypatch):
    """Whatever Zarr is asked to open."""
    places = []

    def open_group(store, **settings):
        places.append(str(store))
        return opening(store, **settings)

    opening = zarr.open_group
    monkeypatch.setattr(zarr, "open_group", open_group)
    return places


def test_rows_beside_a_query_are_read(made, own):
    found = InfluenceRun(made / "here/query.zarr")
    assert found.rows_are_followed
    assert found.has_self_influence
    np.testing.assert_array_equal(found.self_influence(), own)


def test_rows_elsewhere_are_read_where_that_is_allowed(made, own):
    found = InfluenceRun(made / "there/query.zarr", allow_other_places=True)
    np.testing.assert_array_equal(found.self_influence(), own)
    found = InfluenceRun.open(made / "there/query.zarr", allow_other_places=True)
    np.testing.assert_array_equal(found.self_influence(), own)


PLACES = [
    "s3://bucket/run.zarr",
    "http://192.0.2.1/run.zarr",
    "memory://run.zarr",
    "file:///elsewhere/run.zarr",
    "simplecache::http://192.0.2.1/run.zarr",
    "//192.0.2.1/share/run.zarr",
    r"\\192.0.2.1\share\run.zarr",
    "/elsewhere/run.zarr",
    "~nobody-of-this-name/run.zarr",
    "run.zip",
    "a\0b",
    "",
    "x" * 5000,
]


@pytest.mark.parametrize("place", PLACES)
def test_other_places_are_refused_by_name_and_not_visited(led_to, visited, tmp_path, place):
    store = led_to(place)
    found = InfluenceRun(store)
    found.check()
    with pytest.raises(StoreError) as caught:
        found.self_influence()
    assert place in str(caught.value)
    assert "allow_other_places=True" in str(caught.value)
    with pytest.raises(StoreError, match="allow_other_places"):
        query(found, tmp_path / "second.zarr")
    assert not found.has_self_influence
    for command in (["info", "--check"], ["top"]):
        result = CliRunner().invoke(main, [str(a) for a in (*command, store)])
        assert result.exit_code == 0, result.output
    assert {p for p in visited if str(store) not in p and "second.zarr" not in p} == set()


def test_a_report_follows_nothing_by_itself_and_says_so(led_to, visited, tmp_path):
    store = led_to(PLACES[0])
    page = write_report(store, tmp_path / "page.html").read_text()
    assert "are not in a folder beside it (--follow-rows reads them)" in page
    assert {place for place in visited if str(store) not in place} == set()


def test_what_a_link_leads_to_counts(led_to, made, own):
    store = led_to("placeholder")
    link = store.parent / "run.zarr"
    link.symlink_to(made / "here/run.zarr")
    shutil.rmtree(store)
    store = led_to(link)
    with pytest.raises(StoreError, match="allow_other_places"):
        InfluenceRun(store).self_influence()
    beside = store.parent / "sub/../run.zarr"
    os.unlink(link)
    shutil.copytree(made / "here/run.zarr", link)
    (store.parent / "sub").mkdir()
    shutil.rmtree(store)
    np.testing.assert_array_equal(InfluenceRun(led_to(beside)).self_influence(), own)


def test_a_query_into_another_place_works_and_goes_on(made, tmp_path, own):
    parent = InfluenceRun(made / "here/run.zarr")
    first = query(parent, tmp_path / "elsewhere/query.zarr")
    np.testing.assert_array_equal(first.self_influence(), own)
    (tmp_path / "elsewhere/query.zarr/scores/c/0/0").unlink()
    query(parent, tmp_path / "elsewhere/query.zarr").check()
    second = query(first, tmp_path / "elsewhere/second.zarr")  # the rows of the first one
    np.testing.assert_array_equal(second.scores[:], first.scores[:])
    opened = InfluenceRun(tmp_path / "elsewhere/query.zarr")
    with pytest.raises(StoreError, match="allow_other_places"):
        query(opened, tmp_path / "elsewhere/third.zarr")


def test_a_query_of_a_query_does_not_take_the_rows_of_another_run(made, tmp_path):
    parent = run(tmp_path / "run.zarr", rows="zarr")
    first = query(parent, tmp_path / "query.zarr")
    run(tmp_path / "run.zarr", rows="zarr", train=loader(samples(23, 5), 5), overwrite=True)
    with pytest.raises(StoreError, match="holds another run now: training data differ"):
        query(first, tmp_path / "second.zarr")


def test_the_report_follows_on_request(made, tmp_path):
    store, page = made / "there/query.zarr", tmp_path / "page.html"
    arguments = ["report", str(store), "-o", str(page)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert '"self-influence":[' not in page.read_text()
    assert CliRunner().invoke(main, [*arguments, "--follow-rows"]).exit_code == 0
    assert '"self-influence":[' in page.read_text()
    write_report(InfluenceRun(store, allow_other_places=True), page)
    assert '"self-influence":[' in page.read_text()
    assert "--follow-rows reads them" not in page.read_text()


# What a query reads is never what it replaces


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(folder):
    """When each file was written last."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def family(made, tmp_path):
    """A copy of a run with rows within a run, a query of it, and a link to either."""
    outer = shutil.copytree(made / "here/query.zarr", tmp_path / "outer.zarr")
    parent = shutil.copytree(made / "here/run.zarr", outer / "run.zarr")
    first = query(InfluenceRun(parent), tmp_path / "query.zarr")
    (tmp_path / "link").symlink_to(parent)
    (tmp_path / "linked query").symlink_to(tmp_path / "query.zarr")
    return {"run": InfluenceRun(parent), "query": first}


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("run", "outer.zarr/run.zarr"),
        ("run", "link"),
        ("run", "outer.zarr"),
        ("query", "outer.zarr/run.zarr"),
        ("query", "link"),
        ("query", "outer.zarr"),
        ("query", "query.zarr"),
        ("query", "linked query"),
    ],
)
def test_a_query_does_not_replace_the_run_that_it_asks(tmp_path, family, asked, place):
    before = contents(tmp_path)
    store = tmp_path / place
    with pytest.raises(StoreExistsError, match=r"holds the run that is asked.*another store"):
        run_influences(
            build(), loader(samples(4, 7), 4), family[asked], store, overwrite=True, progress=False
        )
    assert contents(tmp_path) == before


def test_a_store_at_an_address_holds_what_is_there_or_below_it():
    store = Store("s3://bucket/run.zarr")
    inside = ["s3://bucket/run.zarr", "s3://bucket/run.zarr/", "s3://bucket/run.zarr/a/b.zarr"]
    outside = ["s3://bucket/run.zarr2", "s3://bucket", "s3://other/run.zarr", "/bucket/run.zarr"]
    assert [store.holds(Store(place)) for place in inside] == [True] * 3
    assert [store.holds(Store(place)) for place in outside] == [False] * 4


def without_rows(folder):
    shutil.rmtree(folder / "run.zarr")
    run(folder / "run.zarr", rows="memory")


def without_damping(folder):
    (folder / "query.zarr/damping/c/0").write_bytes(b"")


def without_norms(folder):
    (folder / "query.zarr/squared_norms/c/1/0").unlink()


def without_some_rows(folder):
    (folder / "run.zarr/rows/0/c/2/0").unlink()


def without_scales(folder):
    shutil.rmtree(folder / "run.zarr/row_scales")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_some_rows, "missing or damaged chunks: rows/0/c/2/0"),
        (without_scales, "has no array 'row_scales'"),
        (without_rows, "keeps no training rows"),
        (without_damping, "missing or damaged chunks: damping/c/0"),
        (without_norms, "missing or damaged chunks: squared_norms/c/1/0"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_query_that_cannot_be_answered_touches_no_store(
    made, tmp_path, damage, message, overwrite
):
    parent = shutil.copytree(made / "here/run.zarr", tmp_path / "run.zarr")
    first = query(InfluenceRun(parent), tmp_path / "query.zarr")
    places = {True: shutil.copytree(parent, tmp_path / "old.zarr"), False: tmp_path / "new.zarr"}
    damage(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=message):
        run_influences(
            build(),
            loader(samples(4, 7), 4),
            first,
            places[overwrite],
            overwrite=overwrite,
            progress=False,
        )
    assert contents(tmp_path) == before


def test_the_same_query_again_writes_nothing_into_a_complete_store(made, tmp_path):
    parent = shutil.copytree(made / "here/run.zarr", tmp_path / "run.zarr")
    store = tmp_path / "query.zarr"
    query(InfluenceRun(parent), store)
    shutil.rmtree(parent / "rows/0/c")  # they are no longer needed
    before = changed(store)
    assert query(InfluenceRun(parent), store).is_complete
    assert changed(store) == before


@pytest.mark.parametrize("chunk", ["damping/c/0", "squared_norms/c/0/0", "squared_norms/c/3/0"])
def test_only_damping_and_norms_that_a_query_lacks_are_copied_again(made, tmp_path, chunk):
    store = shutil.copytree(made / "here/query.zarr", tmp_path / "query.zarr")
    sound, before = contents(store), changed(store)
    writer = InfluenceRun(store).attrs["writer"]
    (store / chunk).write_bytes(b"")
    query(InfluenceRun(made / "here/run.zarr"), store).check()
    assert InfluenceRun(store).attrs["writer"] != writer  # those of the call before are kept out
    assert {path for path, _ in changed(store) ^ before} == {store / chunk, store / "zarr.json"}
    assert (store / chunk).read_bytes() == sound[store / chunk]


def test_self_influences_of_a_query_whose_run_keeps_no_rows_now_are_refused(made, tmp_path):
    parent = shutil.copytree(made / "here/run.zarr", tmp_path / "run.zarr")
    first = query(InfluenceRun(parent), tmp_path / "query.zarr")
    without_rows(tmp_path)
    with pytest.raises(
        StoreError, match=r"keeps no training rows.*Put the run that was there back"
    ):
        first.self_influence()


def test_a_query_that_names_its_own_store_is_refused(led_to, tmp_path):
    store = led_to(tmp_path / "foreign/query.zarr")
    found = InfluenceRun(store)
    with pytest.raises(StoreError, match="is itself a query, and keeps no training rows"):
        found.self_influence()
    with pytest.raises(StoreError, match="is itself a query, and keeps no training rows"):
        query(found, tmp_path / "second.zarr")
    assert not found.has_self_influence


def test_a_run_that_has_no_name_is_not_queried(made, tmp_path):
    parent = InfluenceRun(FsspecStore.from_url(f"file://{made / 'here/run.zarr'}", read_only=True))
    with pytest.raises(StoreError, match=r"opened as a FsspecStore.*Open it by its path or URL"):
        query(parent, tmp_path / "q.zarr")
    assert not (tmp_path / "q.zarr").exists()


def test_a_query_finds_its_rows_from_any_working_directory(made, tmp_path, monkeypatch, own):
    shutil.copytree(made / "here/run.zarr", tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    queried = query(InfluenceRun(LocalStore("run.zarr")), tmp_path / "query.zarr")
    monkeypatch.chdir(made)
    np.testing.assert_array_equal(queried.self_influence(), own)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_store_that_only_reads_is_not_replaced(made, tmp_path, monkeypatch, own, absolute):
    place = shutil.copytree(made / "here/run.zarr", tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    store = LocalStore(place if absolute else "run.zarr", read_only=True)
    with pytest.raises(StoreError, match="is read-only"):
        run(store, rows="zarr", overwrite=True)
    np.testing.assert_array_equal(InfluenceRun(place).self_influence(), own)


def test_a_complete_query_that_is_done_again_writes_nothing(made, own):
    place = made / "here/query.zarr"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    again = query(InfluenceRun(made / "here/run.zarr"), place)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    np.testing.assert_array_equal(again.self_influence(), own)


@pytest.mark.parametrize("lost", ["damping/c/0", "squared_norms/c/1/0"])
def test_what_a_query_lacks_of_damping_and_norms_is_copied_again(made, tmp_path, lost):
    place = shutil.copytree(made / "here/query.zarr", tmp_path / "query.zarr")
    (place / lost).write_bytes(b"damaged")
    query(InfluenceRun(made / "here/run.zarr"), place).check()
    assert (place / lost).read_bytes() == (made / "here/query.zarr" / lost).read_bytes()
