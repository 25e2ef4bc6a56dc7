"""Whatever stops or damages a run: an error that says so, and the same bits in the end."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import joblib
import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from zarr.storage import LocalStore, MemoryStore

import stopped_run
from pydvl_datainf import (
    ClusterError,
    DataInfInfluence,
    ModelError,
    PlanError,
    SourceError,
    StoreError,
    StoreExistsError,
    compute_self_influence,
)
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIGHT, TIMEOUT, M, N, build, chunks, loader, run, samples

ROWS = ["memory", "zarr", "recompute"]
KILLS = 10


@pytest.fixture(scope="module", autouse=True)
def fork_server():
    stopped_run.start_fork_server()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The stores of runs that nothing stopped, by how rows are kept; with little memory."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for rows in ROWS:
        run(folder / rows, rows=rows, memory=TIGHT[rows])
    return {rows: folder / rows for rows in ROWS}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The store of a run that nothing stopped, as `run` makes it without settings."""
    store = tmp_path_factory.mktemp("plain") / "run.zarr"
    run(store)
    return store


def assert_same(store, expected):
    """All chunks bit for bit, and a run that is complete."""
    assert InfluenceRun(store).is_complete
    names = chunks(expected)
    assert chunks(store) == names
    assert [n for n in names if (store / n).read_bytes() != (expected / n).read_bytes()] == []


def gradients(store):
    return InfluenceRun(store).attrs["gradients"]


@pytest.mark.parametrize("rows", ROWS)
def test_premise_runs_have_several_groups_of_queries_and_spans(undisturbed, rows):
    plan = InfluenceRun(undisturbed[rows]).plan
    assert plan.rows == rows
    assert len(plan.groups) == 2
    assert len(plan.spans) == 4


# 1. Killed


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, undisturbed, rows):
    store = tmp_path / "run.zarr"
    counts = range(1, len(chunks(undisturbed[rows])))
    moments = sorted(random.Random(f"kill {rows}").sample(counts, KILLS))
    killed, before = 0, 0
    for moment in moments:
        process = stopped_run.started(stopped_run.run_slowly, store, rows)
        stopped_run.wait_for(lambda at=moment: len(chunks(store)) >= at, process)
        code = stopped_run.killed(process)
        complete = InfluenceRun(store).is_complete
        killed += code == -signal.SIGKILL and not complete
        assert before <= len(chunks(store))  # nothing that was done is lost
        before = len(chunks(store))
    assert killed >= KILLS - 2
    run(store, rows=rows, memory=TIGHT[rows])
    assert_same(store, undisturbed[rows])


# The group's own file is written when it is made, and three times at the end.
WRITTEN = [("zarr.json", count) for count in (1, 2, 3, 4)] + [
    ("block/zarr.json", 1),
    ("work/vectors/0/c/0/2/0", 1),
    ("scores/c/1/2", 1),
]


@pytest.mark.parametrize(("key", "count"), WRITTEN)
def test_a_run_that_is_killed_while_it_writes_a_file_goes_on(tmp_path, plain, key, count):
    store = tmp_path / "run.zarr"
    function = stopped_run.run_killed_in_write
    assert stopped_run.ended(function, store, key, count, {}) == -signal.SIGKILL
    assert list(store.rglob("*.partial"))  # the premise: a file that has not got its name
    run(store)
    assert_same(store, plain)
    InfluenceRun(store).check()
    assert "scores" in zarr.open_consolidated(store)
    assert not list(store.rglob("*.partial"))


# 2. Interrupted


@pytest.mark.parametrize(
    ("rows", "share"),
    [("memory", 0.5), ("zarr", 0.3), ("zarr", 0.8), ("recompute", 0.1), ("recompute", 0.9)],
)
def test_after_ctrl_c_only_what_is_missing_is_computed(
    tmp_path, undisturbed, monkeypatch, rows, share
):
    store, total = tmp_path / "run.zarr", gradients(undisturbed[rows])
    # A forward pass takes two samples or three, and some are repeated as a check.
    interrupt = stopped_run.Interrupt(int(share * total / 2))
    with pytest.raises(KeyboardInterrupt):
        run(store, interrupt, rows=rows, memory=TIGHT[rows])
    done = gradients(store)
    assert 0 <= done < total
    counted = count_gradients(monkeypatch)
    run(store, rows=rows, memory=TIGHT[rows])
    assert_same(store, undisturbed[rows])
    assert sum(counted) == gradients(store) - done
    # Rows in memory are gone, and each is computed again at most once.
    assert gradients(store) <= total + (N if rows == "memory" else 0)


def count_gradients(monkeypatch):
    counted, original = [], DataInfInfluence.loss_gradients_by_block

    def count(self, x, y=None):
        counted.append(len(x))
        return original(self, x, y)

    monkeypatch.setattr(DataInfInfluence, "loss_gradients_by_block", count)
    return counted


def test_ctrl_c_just_before_the_end_leaves_nothing_out(tmp_path, plain, monkeypatch):
    """Readers that open the group whole need the metadata that are written last."""

    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr, "consolidate_metadata", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.zarr")
    monkeypatch.undo()
    run(tmp_path / "run.zarr")
    assert_same(tmp_path / "run.zarr", plain)
    assert "scores" in zarr.open_consolidated(tmp_path / "run.zarr")


# 3. Damaged


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def empty(file):
    file.write_bytes(b"")


DAMAGES = [flip_a_byte, truncate, empty, Path.unlink]


def self_influence(done):
    return compute_self_influence(done, progress=False)


CUT = {"tile": (6, 12)}
SETTINGS = {
    "zarr": {"rows": "zarr", "ids": {"train": [f"sample {i}" for i in range(N)]}, **CUT},
    "top": {"top_k": 4, **CUT},
    "recompute": CUT,
}
# Of which run, which chunk, how it is read, and how many gradients its repair takes.
DAMAGED = [
    ("recompute", "scores/c/1/0", lambda done: done.top(2), M + N + 12),
    ("recompute", "squared_norms/c/1/0", InfluenceRun.check, 11),
    ("zarr", "scores/c/0/1", lambda done: done.top(2), M),  # gradients of all queries
    ("zarr", "squared_norms/c/0/0", InfluenceRun.check, 12),
    ("zarr", "mean_influence/c/1", InfluenceRun.mean_influence, 0),
    ("zarr", "rows/0/c/1/0", self_influence, 11),
    ("zarr", "row_scales/c/0/0", self_influence, 12),
    ("zarr", "damping/c/0", lambda done: done.damping, 0),
    ("zarr", "block/c/0", lambda done: done.damping, 0),
    ("zarr", "train/c/0", lambda done: done.top(2), 0),
    ("zarr", "test/c/0", lambda done: done.top(2, test=0), 0),
    ("top", "top/c/1/0/0", lambda done: done.top(2), M + 2 * N),
    ("top", "top_scores/c/0/0/0", lambda done: done.top(2), M + 2 * N),
    ("top", "mean_influence/c/1", InfluenceRun.mean_influence, M + N + 11),
]
NAMES = [f"{kind} {key}" for kind, key, _, _ in DAMAGED]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Stores to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound")
    for kind, settings in SETTINGS.items():
        run(folder / kind, **settings)
    return folder  # without self-influences, which would hide that rows are damaged


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "key", "read", "repair"), DAMAGED, ids=NAMES)
def test_damage_is_found_and_repaired(tmp_path, sound, damage, kind, key, read, repair):
    store = shutil.copytree(sound / kind, tmp_path / "run.zarr")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    damage(store / key)
    for reading in (read, InfluenceRun.check):
        with pytest.raises(StoreError, match=f"{key}(?![/0-9])"):
            reading(InfluenceRun(store))
    run(store, **SETTINGS[kind])
    assert_same(store, sound / kind)
    assert gradients(store) == gradients(sound / kind) + repair
    # All scores of a piece of blocks come together, and rows with what is known of them.
    together = ("rows", "row_scales", "squared_norms", "top", "top_scores")
    with_it = key.split("/")[0] in together + (("scores",) if kind == "zarr" else ())
    for path in {store / name for name in chunks(store)} - {store / key}:
        assert with_it or path.stat().st_mtime_ns == before[path]


def test_premise_a_sound_run_is_read_without_complaint(tmp_path, sound):
    shutil.copytree(sound, tmp_path / "sound")
    for kind, _, read, _ in DAMAGED:
        read(InfluenceRun(tmp_path / "sound" / kind))
        InfluenceRun(tmp_path / "sound" / kind).check()


# 4. A full disk


@pytest.mark.parametrize("writes", [0, 1, 10, 25, 50])
def test_a_full_disk_is_named_and_the_run_goes_on(tmp_path, plain, monkeypatch, writes):
    store, left = tmp_path / "run.zarr", itertools.count(writes, -1)
    write = LocalStore._set

    async def set_or_fail(self, key, value, exclusive=False):
        if next(left) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await write(self, key, value, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "_set", set_or_fail)
        with pytest.raises(StoreError, match=r"Writing to .*run.zarr failed: .*No space left"):
            run(store)
    run(store)
    assert_same(store, plain)


def test_a_limit_on_the_size_of_files_is_named_and_the_run_goes_on(tmp_path):
    wide, limit = {"hidden": 200}, 12_000
    run(tmp_path / "whole.zarr", influence=build(**wide))
    size = stopped_run.run_with_largest_file
    error = stopped_run.outcome(size, tmp_path / "run.zarr", limit, wide["hidden"])
    assert isinstance(error, StoreError)
    assert "File too large" in str(error)
    assert "call run_influences again" in str(error)
    assert any("squared_norms" in name for name in chunks(tmp_path / "run.zarr"))
    assert not any("scores" in name for name in chunks(tmp_path / "run.zarr"))
    run(tmp_path / "run.zarr", influence=build(**wide))
    assert_same(tmp_path / "run.zarr", tmp_path / "whole.zarr")


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, timeout=TIMEOUT)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 150 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=150k", "tmpfs", folder).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=TIMEOUT)


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount command")
def test_a_disk_that_is_really_full_and_then_grows(small_disk, plain):
    with pytest.raises(StoreError, match="No space left"):
        run(small_disk / "run.zarr")
    assert chunks(small_disk / "run.zarr")
    assert not mount("-o", "remount,size=8m", small_disk).returncode
    run(small_disk / "run.zarr")
    assert_same(small_disk / "run.zarr", plain)


# 5. A store that cannot be written


@pytest.fixture
def public():
    """A folder that everybody may read, and nobody but its owner may write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_the_right_to_write(public):
    error = stopped_run.outcome(stopped_run.run_without_rights, public / "run.zarr")
    assert isinstance(error, StoreError)
    assert "cannot be written" in str(error)
    assert not (public / "run.zarr").exists()


@pytest.fixture
def public_run(plain):
    """A run that lacks a chunk, in a folder that others may write, but not into the run."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    store = shutil.copytree(plain, folder / "run.zarr")
    (store / "scores/c/0/0").unlink()
    for place, _, _ in os.walk(store):
        Path(place).chmod(0o555)
    yield store
    for place, _, _ in os.walk(store):
        Path(place).chmod(0o755)
    shutil.rmtree(folder)


def test_a_run_without_the_right_to_write(public_run):
    error = stopped_run.outcome(stopped_run.run_without_rights, public_run)
    assert isinstance(error, StoreError)
    assert "cannot be written" in str(error)


@pytest.mark.parametrize("closed", ["", "scores/c", "scores/c/1"])
def test_a_run_that_may_not_be_deleted_is_not_replaced(public_run, closed):
    for place, _, _ in os.walk(public_run):
        Path(place).chmod(0o777)
    (public_run / closed).chmod(0o555)
    before = {path: path.read_bytes() for path in public_run.rglob("*") if path.is_file()}
    error = stopped_run.outcome(stopped_run.replace_without_rights, public_run)
    assert isinstance(error, StoreError)
    assert f"cannot be replaced: nothing may be deleted in {public_run / closed}" in str(error)
    assert {path: path.read_bytes() for path in public_run.rglob("*") if path.is_file()} == before
    assert [path.name for path in public_run.parent.iterdir()] == ["run.zarr"]


def test_a_run_without_rights_that_everybody_may_delete_is_replaced(public_run):
    for place, _, _ in os.walk(public_run):
        Path(place).chmod(0o777)
    assert stopped_run.outcome(stopped_run.replace_without_rights, public_run) is None
    InfluenceRun(public_run).check()


def test_a_run_without_the_right_to_write_can_be_read(public, sound, tmp_path):
    store = shutil.copytree(sound / "zarr", tmp_path / "run.zarr")
    self_influence(InfluenceRun(store))
    public.chmod(0o755)
    shutil.copytree(store, public / "run.zarr")
    public.chmod(0o555)
    assert stopped_run.outcome(stopped_run.read_without_rights, public / "run.zarr") is None


def test_a_file_system_that_is_mounted_read_only(small_disk):
    assert not mount("-o", "remount,ro", small_disk).returncode
    with pytest.raises(StoreError, match="Read-only file system"):
        run(small_disk / "run.zarr")


def test_a_zarr_store_that_is_opened_read_only(tmp_path, plain):
    (tmp_path / "empty.zarr").mkdir()
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    (store / "scores/c/0/0").unlink()
    for folder in (tmp_path / "empty.zarr", store):
        with pytest.raises(StoreError, match="read-only"):
            run(LocalStore(folder, read_only=True))


@pytest.mark.parametrize("kind", ["zarr", "top"])
def test_a_zarr_store_that_is_opened_read_only_can_be_read(sound, kind):
    done = InfluenceRun(LocalStore(sound / kind, read_only=True))
    done.check()
    np.testing.assert_array_equal(done.top(3)[1], InfluenceRun(sound / kind).top(3)[1])


def test_self_influences_of_a_zarr_store_that_is_opened_read_only(sound):
    done = InfluenceRun(LocalStore(sound / "zarr", read_only=True))
    with pytest.raises(StoreError, match="read-only"):
        self_influence(done)


# 6. Another run, or something else


def root_of_sum(outputs, y):
    return outputs.sum(1).abs().sqrt().sum()


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
        ({"test": loader(with_label(M, 2), 4)}, "test data"),
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


@pytest.mark.parametrize("damage", [empty, Path.unlink])
@pytest.mark.parametrize("file", ["zarr.json", "scores/zarr.json"])
def test_damaged_metadata_are_an_error_that_names_the_store(tmp_path, plain, file, damage):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    damage(store / file)
    with pytest.raises(StoreError, match=r"run\.zarr"):
        InfluenceRun(store).check()


@pytest.mark.parametrize("file", ["scores/zarr.json", "rows/0/zarr.json", "train/zarr.json"])
def test_deleted_metadata_of_an_array_are_made_again(tmp_path, sound, file):
    store = shutil.copytree(sound / "zarr", tmp_path / "run.zarr")
    (store / file).unlink()
    run(store, **SETTINGS["zarr"])
    assert_same(store, sound / "zarr")
    assert (store / file).read_bytes() == (sound / "zarr" / file).read_bytes()


# 7. Two runs on one store


def test_a_second_run_waits_outside_until_the_first_is_dead(tmp_path, plain):
    store, sign = tmp_path / "run.zarr", tmp_path / "computing"
    (tmp_path / "link.zarr").symlink_to(store, target_is_directory=True)
    first = stopped_run.started(stopped_run.run_blocked, store, sign)
    stopped_run.wait_for(sign.exists, first)
    second = [store, tmp_path / "link.zarr", f"file://{store}", LocalStore(store)]
    for place, overwrite in itertools.product(second, (False, True)):
        with pytest.raises(StoreError, match="Another run is writing to"):
            run(place, overwrite=overwrite)
    assert "training data" in InfluenceRun(store).attrs["fingerprint"]  # reading is possible
    assert stopped_run.killed(first) == -signal.SIGKILL
    run(store)
    assert_same(store, plain)


# 8. Losses and gradients that are no numbers

SIDES = {"train": (N, 1, 5, "training"), "test": (M, 2, 4, "test")}


def with_value(side, position, value):
    """Loaders of which one has a sample with one input of that value."""
    length, seed, batch_size, _ = SIDES[side]
    x, y = samples(length, seed)
    x[position, 1] = value
    return {side: loader((x, y), batch_size)}


BAD = [("train", 0), ("train", 17), ("train", N - 1), ("test", 3), ("test", M - 1)]


@pytest.mark.parametrize(
    ("side", "position", "value", "gradients"),
    [(*place, np.nan, "auto") for place in BAD]
    + [("train", 17, np.inf, "auto"), ("train", N - 1, np.nan, "functional")],
)
def test_the_sample_whose_loss_is_no_number_is_named(tmp_path, side, position, value, gradients):
    data, influence = with_value(side, position, value), build(gradients=gradients)
    ids = {side: [f"s{i}" for i in range(SIDES[side][0])]}
    expected = rf"Position {position} of the {SIDES[side][3]} data \(id 's{position}'\)"
    with pytest.raises(ModelError, match=expected):
        run(tmp_path / "run.zarr", influence=influence, ids=ids, **data)


def test_numbers_as_ids_look_like_numbers_and_groups_have_none(tmp_path):
    ids = {"train": np.arange(100, 100 + N)}
    with pytest.raises(ModelError, match=r"Position 17 of the training data \(id 117\): "):
        run(tmp_path / "ids.zarr", ids=ids, **with_value("train", 17, np.nan))
    with pytest.raises(ModelError, match="Position 9 of the test data: "):
        run(tmp_path / "groups.zarr", query_groups=[0] * M, **with_value("test", 9, np.nan))


@pytest.mark.parametrize(("side", "position"), BAD)
def test_the_sample_whose_gradient_is_no_number_is_named(tmp_path, side, position):
    """The loss is zero there, and its derivative infinite."""
    length, seed, batch_size, name = SIDES[side]
    x, y = samples(length, seed)
    x[position] = 0
    influence = DataInfInfluence(nn.Linear(3, 4, bias=False), root_of_sum)
    with pytest.raises(ModelError, match=f"Position {position} of the {name} data.*gradient"):
        run(tmp_path / "run.zarr", influence=influence, **{side: loader((x, y), batch_size)})


@pytest.mark.parametrize(
    ("side", "position", "rows"),
    [("train", 16, "memory"), ("test", 9, "zarr"), ("train", 16, "recompute")],
)
def test_what_was_done_before_such_a_sample_stays(tmp_path, undisturbed, side, position, rows):
    sample = samples(*SIDES[side][:2])[0][position]
    settings = {"rows": rows, "memory": TIGHT[rows]}
    with pytest.raises(ModelError, match=f"Position {position} of "):
        run(tmp_path / "run.zarr", stopped_run.Poison(sample, np.nan), **settings)
    assert gradients(tmp_path / "run.zarr") > 0
    run(tmp_path / "run.zarr", **settings)
    assert_same(tmp_path / "run.zarr", undisturbed[rows])
    again = N if rows == "memory" else 0
    assert gradients(tmp_path / "run.zarr") <= gradients(undisturbed[rows]) + again


# 9. Names of blocks


class Direct(nn.Module):
    """A model that owns a parameter itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.layer(x)) * self.scale


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize(
    ("structure", "names", "rows"),
    [
        ("module", ["", "layer"], "memory"),
        ({"a/b": ["layer.weight"], "a": ["layer.bias", "scale"]}, ["a/b", "a"], "zarr"),
        ({"": ["layer.bias"], "ü .. c/0 ": ["layer.weight"]}, ["", "ü .. c/0 "], "memory"),
    ],
)
def test_any_name_of_a_block_comes_back(tmp_path, structure, names, rows):
    influence = DataInfInfluence(Direct(), F.cross_entropy, {names[0]: 0.5}, structure)
    done = run(tmp_path / "run.zarr", influence=influence, by_block=True, rows=rows)
    done.check()
    assert run(tmp_path / "run.zarr", influence=influence, by_block=True, rows=rows).is_complete
    influence.fit(loader(samples(N, 1), 5))
    assert list(InfluenceRun(tmp_path / "run.zarr").damping) == sorted(names, key=names.index)
    assert done.damping == pytest.approx(influence.damping, rel=1e-6)
    assert done.damping[names[0]] == 0.5
    expected = influence.influences_by_block(*samples(M, 2), *samples(N, 1))
    for i, name in enumerate(done.damping):
        scores = expected[name].numpy()
        atol = {"memory": 1e-5, "zarr": 3e-3}[rows] * np.abs(scores).max()
        np.testing.assert_allclose(done.scores[:, i], scores, rtol=0, atol=atol, err_msg=name)


# 10. Data that does not serve


class Noise(Dataset):
    """Another sample every time, as random augmentation gives."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return torch.rand(3), torch.tensor(0)


@pytest.mark.parametrize(
    ("side", "rows"),
    [("test", "memory"), ("train", "memory"), ("train", "zarr"), ("train", "recompute")],
)
def test_data_that_changes_between_two_reads_is_refused(tmp_path, side, rows):
    with pytest.raises(SourceError, match=r"Batch 0 differs between two reads.*augmentation"):
        run(tmp_path / "run.zarr", rows=rows, **{side: DataLoader(Noise(SIDES[side][0]), 5)})


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*samples(N, 1), strict=True)


def empty_loader():
    return DataLoader(TensorDataset(*samples(0, 1)), 5)


def shuffled_loader():
    return DataLoader(TensorDataset(*samples(N, 1)), 5, shuffle=True)


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (shuffled_loader(), "random order.*shuffle=False"),
        (Stream(), "is a stream"),
        (DataLoader(Stream(), 5), "is a stream"),
        (empty_loader(), "is empty"),
        (iter([samples(N, 1)]), "Pass a dataset"),
    ],
    ids=["shuffled", "stream", "stream loader", "no samples", "iterator"],
)
def test_data_of_the_wrong_kind_is_refused_before_a_store_is_made(tmp_path, side, data, message):
    with pytest.raises(SourceError, match=f"(training|train|test) .*{message}"):
        run(tmp_path / "run.zarr", **{side: data})
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize("data", [TensorDataset(*samples(0, 1)), []], ids=["dataset", "list"])
def test_no_data_at_all_is_refused_before_a_store_is_made(tmp_path, side, data):
    settings = {"test": loader(samples(M, 2), 4), "train": loader(samples(N, 1), 5), side: data}
    with pytest.raises(SourceError, match="empty"):
        stopped_run.run_influences(build(), store=tmp_path / "run.zarr", progress=False, **settings)
    assert not (tmp_path / "run.zarr").exists()


def test_a_model_that_was_fitted_on_other_data_is_refused_before_a_store_is_made(tmp_path):
    fitted = build().fit(loader(samples(N - 1, 1), 5))
    with pytest.raises(SourceError, match="fitted on 22 samples, and the training data has 23"):
        run(tmp_path / "run.zarr", influence=fitted)
    assert not (tmp_path / "run.zarr").exists()


# 11. Other processes


@pytest.fixture(scope="module")
def client():
    """Of two workers, from our fork server; it does not forget a worker that is started again."""
    settings = {"deploy.lost-worker-timeout": "1h", "worker.multiprocessing-method": "forkserver"}
    with (
        dask.config.set({f"distributed.{name}": value for name, value in settings.items()}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["zarr", "recompute"])
def test_a_run_outlives_a_dask_worker(tmp_path, client, undisturbed, rows):
    store = tmp_path / "run.zarr"
    client.wait_for_workers(2, timeout=TIMEOUT)
    pids = client.run(os.getpid)
    enough = len(chunks(undisturbed[rows])) // 2

    def kill():
        stopped_run.wait_for(lambda: len(chunks(store)) >= enough)
        os.kill(min(pids.values()), signal.SIGKILL)
        return InfluenceRun(store).is_complete

    with ThreadPoolExecutor(1) as pool:
        was_complete = pool.submit(kill)
        run(store, stopped_run.Pause(0.02), client=client, rows=rows, memory=TIGHT[rows])
    assert not was_complete.result()
    client.wait_for_workers(2, timeout=TIMEOUT)
    assert min(pids.values()) not in client.run(os.getpid).values()
    assert_same(store, undisturbed[rows])


def test_dask_workers_name_the_sample_whose_loss_is_no_number(tmp_path, client):
    client.wait_for_workers(2, timeout=TIMEOUT)
    with pytest.raises(ModelError, match=r"Position 17 of the training data \(id 17\)"):
        run(tmp_path / "run.zarr", client=client, **with_value("train", 17, np.nan))


def test_workers_do_not_see_a_store_in_memory(client):
    for settings in ({"client": client}, {"n_jobs": 2}):
        with pytest.raises(StoreError, match="in this process's memory"):
            run(MemoryStore(), **settings)


def in_process_cluster(workers, threads):
    return LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=":0"
    )


def test_workers_with_several_threads_are_refused(tmp_path):
    with (
        in_process_cluster(1, 2) as cluster,
        Client(cluster) as client,
        pytest.raises(ClusterError, match=r"more than one thread.*--nthreads 1"),
    ):
        run(tmp_path / "run.zarr", client=client)
    assert not (tmp_path / "run.zarr").exists()


def test_a_cluster_without_workers_and_a_closed_client_are_refused(tmp_path):
    with in_process_cluster(0, 1) as cluster:
        with (
            Client(cluster) as client,
            pytest.raises(ClusterError, match=r"no workers.*dask worker ADDRESS"),
        ):
            run(tmp_path / "run.zarr", client=client)
        with pytest.raises(ClusterError, match="client is closed"):
            run(tmp_path / "run.zarr", client=client)
    assert not (tmp_path / "run.zarr").exists()


def test_an_address_where_nobody_listens_is_refused(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"),
    ):
        run(tmp_path / "run.zarr", client="tcp://127.0.0.1:9")
    assert not (tmp_path / "run.zarr").exists()


WITHOUT_THE_PACKAGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pydvl_datainf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def cluster_without_the_package(tmp_path):
    """The address of a scheduler with one worker, from the command line."""
    preload = tmp_path / "missing.py"
    preload.write_text(WITHOUT_THE_PACKAGE)
    with stopped_run.cluster(tmp_path, options=["--preload", str(preload)]) as (address, _):
        yield address


@pytest.mark.slow
def test_workers_without_the_package_are_refused(tmp_path, cluster_without_the_package):
    with pytest.raises(ClusterError, match=r"has pydvl-datainf none.*Install the same version"):
        run(tmp_path / "run.zarr", client=cluster_without_the_package)
    assert not (tmp_path / "run.zarr").exists()


def test_threads_of_joblib_are_refused(tmp_path):
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(PlanError, match=r"runs threads.*loky"),
    ):
        run(tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.slow
def test_a_dead_process_of_joblib_is_named_and_the_run_goes_on(tmp_path, plain):
    store = tmp_path / "run.zarr"
    enough = len(chunks(plain)) // 3
    deadly = stopped_run.Deadly(os.getpid(), store, enough)
    with pytest.raises(ClusterError, match=r"worker process died.*call run_influences again"):
        run(store, deadly, n_jobs=2)
    assert len(chunks(store)) >= enough
    assert not InfluenceRun(store).is_complete
    run(store, deadly)
    assert_same(store, plain)
