"""What stands in the place of a run already: another run, one at work, or something else."""

import itertools
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

import stopped_run
from pydvl_datainf import DataInfInfluence, StoreError, StoreExistsError, run_influences
from pydvl_datainf.results.facts import run_facts
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import M, N, build, chunks, loader, root_of_sum, run, samples
from undisturbed import assert_same, gradients

pytestmark = pytest.mark.usefixtures("fork_server")

# Another run, or something else


def with_change(where):
    """An influence model in which one parameter differs."""
    influence = build()
    influence.model.layers[where].bias.data[0] += 1e-3
    return influence


def with_label(length, seed):
    """Samples of which one has another label."""
    x, y = samples(length, seed)
    y[3] = (y[3] + 1) % 4
    return x, y


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"influence": with_change(2)}, r"model: 1 differ \('layers\.2\.bias'\)"),
        ({"influence": build(regularization=0.1)}, r"damping: 2 differ"),
        ({"influence": build(regularization={"layers.0": 1})}, r"damping: 1 .*'layers\.0'"),
        ({"influence": build(block_structure="full")}, "blocks"),
        ({"influence": DataInfInfluence(stopped_run.Network(), root_of_sum)}, "objective"),
        ({"train": loader(with_label(N, 1), 5)}, "training data"),
        ({"train": loader(samples(N + 1, 1), 5)}, "training samples: 23 in the store, 24 now"),
        ({"test": loader(with_label(M, 2), 4)}, "test data: other than in the store\n"),
        ({"top_k": 2}, "top_k: None in the store, 2 now"),
        ({"by_block": True}, "by_block: False in the store, True now"),
        ({"query_groups": np.arange(M)}, "query groups"),
        ({"ids": {"train": np.arange(1, N + 1)}}, "ids and metadata"),
        ({"metadata": {"test": {"label": ["a"] * M}}}, "ids and metadata"),
        ({"metadata": {"run": {"epoch": 3}}}, r"run metadata: epoch: None in the store, 3 now"),
        ({"rows": "zarr"}, "rows: 'recompute' in the store, 'zarr' now"),
        ({"tile": (3, 7)}, "train_tile: 6 in the store, 7 now"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_another_run_is_refused_with_what_differs(tmp_path, plain, other, difference):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    with pytest.raises(
        StoreExistsError, match=rf"(?s)another run.*  - {difference}.*overwrite=True"
    ):
        run(store, **other)
    assert_same(store, plain)


@pytest.mark.parametrize("name", ["run.zarr", "link.zarr"])
def test_another_run_is_replaced_on_request(tmp_path, sound, plain, name):
    store = shutil.copytree(sound / "zarr", tmp_path / "run.zarr")
    (tmp_path / "link.zarr").symlink_to(store, target_is_directory=True)
    run(tmp_path / name, overwrite=True)
    assert_same(store, plain)
    assert gradients(store) == gradients(plain)
    assert {path.name for path in tmp_path.iterdir()} == {"link.zarr", "run.zarr"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_refused(tmp_path, plain, overwrite, version):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    zarr.open_group(store).attrs["format_version"] = version
    message = f"format version {version}; this version of the package reads 2"
    with pytest.raises(StoreError, match=message):
        run(store, overwrite=overwrite)
    with pytest.raises(StoreError, match=message):
        InfluenceRun(store)
    assert chunks(store) == chunks(plain)


def foreign_group(place):
    zarr.create_group(place, attributes={"made by": "somebody else"})
    return place / "zarr.json"


def foreign_array(place):
    zarr.save_array(place, np.arange(3))
    return place / "zarr.json"


def foreign_group_of_format_2(place):
    zarr.create_group(place, zarr_format=2)
    return place / ".zgroup"


def foreign_folder(place):
    place.mkdir()
    (place / "thesis.txt").write_text("the only copy")
    return place / "thesis.txt"


def foreign_download(place):
    place.mkdir()
    (place / "thesis.pdf.partial").write_text("the only copy")
    return place / "thesis.pdf.partial"


def foreign_file(place):
    place.write_text("the only copy")
    return place


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "foreign",
    [
        foreign_group,
        foreign_array,
        foreign_group_of_format_2,
        foreign_folder,
        foreign_download,
        foreign_file,
    ],
)
def test_what_is_not_ours_is_never_replaced(tmp_path, foreign, overwrite):
    file = foreign(tmp_path / "run.zarr")
    before = file.read_bytes()
    with pytest.raises(StoreExistsError, match="Choose another place"):
        run(tmp_path / "run.zarr", overwrite=overwrite)
    assert file.read_bytes() == before


@pytest.mark.parametrize("place", [foreign_group, foreign_folder, foreign_file, Path])
def test_what_is_not_ours_is_not_opened(tmp_path, place):
    place(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=r"run\.zarr"):
        InfluenceRun(tmp_path / "run.zarr")


# Two runs on one store


def test_a_second_run_waits_outside_until_the_first_is_dead(tmp_path, plain):
    store, sign = tmp_path / "run.zarr", tmp_path / "computing"
    (tmp_path / "link.zarr").symlink_to(store, target_is_directory=True)
    first = stopped_run.started(stopped_run.run_blocked, store, sign)
    stopped_run.wait_for(sign.exists, first)
    second = [store, tmp_path / "link.zarr", f"file://{store}", LocalStore(store)]
    for place, overwrite in itertools.product(second, (False, True)):
        with pytest.raises(StoreError, match="Another run is writing to"):
            run(place, overwrite=overwrite)
    there = InfluenceRun(store)
    assert "training data" in there.attrs["fingerprint"]  # reading is possible
    at_work = r"is not complete.*Another call is at work on it: wait"
    with pytest.raises(StoreError, match=at_work):
        there.check_complete()
    with pytest.raises(StoreError, match=at_work):
        run_influences(build(), loader(samples(M, 2), 4), there, tmp_path / "query.zarr")
    assert run_facts(there)["How far it is"]["To go on"].startswith("wait: another call")
    assert stopped_run.killed(first) == -signal.SIGKILL
    with pytest.raises(StoreError, match=r"is not complete.*Call run_influences again"):
        there.check_complete()
    assert run_facts(there)["How far it is"]["To go on"].startswith("call run_influences")
    run(store)
    assert_same(store, plain)
