"""What a run keeps and shows: ids, metadata, checksums, and which run it is."""

import sys

import numpy as np
import pytest
import zarr

from pydvl_datainf import StoreError, StoreExistsError, run_influences
from pydvl_datainf.influence.sample_rows import SampleRows
from pydvl_datainf.results.reader import InfluenceRun
from small_runs import M, N, build, close, loader, query_loader, run


def test_ids_and_metadata(tmp_path):
    ids = {"test": [f"query {i}" for i in range(M)], "train": np.arange(N) * 10}
    metadata = {
        "train": {"label": ["naïve", ""] * 11 + ["<b>"], "weight": np.linspace(0, 1, N)},
        "test": {"right": np.arange(M) % 2 == 0},
        "run": {"rate": 1e-3, "layers": ["q", "v"], "none": None},
    }
    done = run(tmp_path / "run.zarr", ids=ids, metadata=metadata)
    opened = InfluenceRun.open(tmp_path / "run.zarr")
    assert opened.test_ids.tolist() == ids["test"]
    assert opened.train_ids.tolist() == ids["train"].tolist()
    assert opened.metadata("train")["label"].tolist() == metadata["train"]["label"]
    np.testing.assert_array_equal(opened.metadata("train")["weight"], metadata["train"]["weight"])
    assert opened.metadata("test")["right"].dtype == bool
    assert opened.metadata("run") == metadata["run"]
    assert opened.top(2, test="query 3")[0].tolist() == done.top(2)[0][3].tolist()
    assert set(opened.top(2)[0].ravel().tolist()) <= set(ids["train"].tolist())


@pytest.mark.filterwarnings("error")
def test_xarray_opens_a_run(tmp_path):
    import xarray

    run(tmp_path / "run.zarr", ids={"train": [f"t{i}" for i in range(N)]}, rows="zarr")
    with xarray.open_zarr(tmp_path / "run.zarr") as opened:
        assert opened["scores"].dims == ("test", "train")
        assert opened.attrs["sign"].startswith("positive")
        one = opened["scores"].sel(test=2, train="t5").values
    done = InfluenceRun(tmp_path / "run.zarr")
    assert one == done.scores[2, 5]
    assert done.to_xarray()["scores"].shape == (M, N)


def test_without_xarray_the_extra_is_named(tmp_path, monkeypatch):
    done = run(tmp_path / "run.zarr")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pydvl-datainf\[xarray\]"):
        done.to_xarray()


def test_every_chunk_has_a_checksum_and_intermediate_results_are_gone(tmp_path):
    run(tmp_path / "run.zarr", rows="zarr", top_k=2, metadata={"test": {"text": ["?"] * M}})
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    rows = dict(group["rows"].arrays())
    arrays = {**dict(group.arrays()), **rows}
    assert {"0", "top", "test_text", "block"} <= set(arrays)
    for array in arrays.values():
        assert type(array.compressors[-1]).__name__ == "Crc32cCodec"
    assert [name for name, _ in group.groups()] == ["rows"]


def test_self_influences_that_were_not_asked_for_can_be_added(tmp_path, truth):
    first = run(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match="self_influence=True"):
        first.self_influence()
    again = run(tmp_path / "run.zarr", self_influence=True)
    close(again.self_influence(), truth["selves"])
    assert again.attrs["gradients"] == first.attrs["gradients"] + N  # rows were in memory only


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"a": True}, "run metadata: a: 1 in the store, True now"),
        ({"a": [0, {"b": [True]}]}, {"a": [0, {"b": [1]}]}, "run metadata: a: "),
        ({"a": {"b": False}}, {"a": {"b": 0}}, r"run metadata: a: 1 differ \('b'\)"),
    ],
)
def test_truth_values_are_no_numbers(tmp_path, first, second, message):
    run(tmp_path / "run.zarr", metadata={"run": first})
    with pytest.raises(StoreExistsError, match=message):
        run(tmp_path / "run.zarr", metadata={"run": second})


def test_ids_of_another_type_are_the_same_run(tmp_path):
    first = run(tmp_path / "run.zarr", ids={"train": list(range(N))})
    again = run(tmp_path / "run.zarr", ids={"train": np.arange(N, dtype=np.uint8)})
    assert again.attrs == first.attrs


def test_a_finished_run_is_not_computed_again(tmp_path, monkeypatch):
    first = run(tmp_path / "run.zarr")
    scores = (tmp_path / "run.zarr" / "scores" / "c" / "0" / "0").stat().st_mtime_ns
    monkeypatch.setattr(SampleRows, "of", None)
    monkeypatch.setattr(SampleRows, "with_losses", None)
    again = run(tmp_path / "run.zarr")
    assert again.attrs == first.attrs
    assert (tmp_path / "run.zarr" / "scores" / "c" / "0" / "0").stat().st_mtime_ns == scores


READS = {
    "ids": lambda opened: opened.train_ids,
    "damping": lambda opened: opened.damping,
    "columns": lambda opened: opened.metadata("train"),
    "mean": lambda opened: opened.mean_influence(),
    "self": lambda opened: opened.self_influence(),
    "top": lambda opened: opened.top(2),
    "scores": lambda opened: opened.scores,
    "progress": lambda opened: opened.progress(),
    "check": lambda opened: opened.check(),
    "comparison": lambda opened: opened.approximation_error,
    "xarray": lambda opened: opened.to_xarray(),
    "query": lambda opened: run_influences(
        build(), query_loader(), opened, "nowhere.zarr", progress=False
    ),
}


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    """A run that was read from, and by now is another one, of more samples."""
    place = tmp_path_factory.mktemp("replaced") / "run.zarr"
    settings = {"rows": "zarr", "self_influence": True, "exact_sample": 10, "overwrite": True}
    opened = run(place, metadata={"train": {"x": np.arange(N)}}, **settings)
    for name in READS.keys() - {"query"}:
        READS[name](opened)
    run(place, train=loader(40, 8, 5), metadata={"train": {"x": np.arange(40)}}, **settings)
    return opened


@pytest.mark.parametrize("name", READS)
def test_an_open_run_does_not_read_the_one_that_replaced_it(replaced, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"was replaced, or deleted.*InfluenceRun\.open"):
        READS[name](replaced)


def test_an_open_run_reads_the_same_run_made_again(tmp_path):
    opened = run(tmp_path / "run.zarr")
    before = opened.mean_influence()
    run(tmp_path / "run.zarr", overwrite=True)
    np.testing.assert_array_equal(opened.mean_influence(), before)


def test_another_plan_is_another_run(tmp_path):
    run(tmp_path / "run.zarr")
    with pytest.raises(StoreExistsError, match="train_tile"):
        run(tmp_path / "run.zarr", tile=(7, 9))
    assert run(tmp_path / "run.zarr", tile=(7, 9), overwrite=True).plan.train_tile == 9
