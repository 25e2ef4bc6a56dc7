"""Runs that are stopped, damaged or disturbed: nothing is lost, and nothing wrong is kept."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset
from zarr.storage import LocalStore, MemoryStore

import slow
from pydvl_datainf import (
    ClusterError,
    DataInfInfluence,
    InfluenceRun,
    ModelError,
    SourceError,
    StoreError,
    StoreExistsError,
    run_influences,
    store,
)
from slow import M, N, loader, slow_run

ROWS = ["memory", "zarr", "recompute"]
KILLS = 10
SCRIPT = Path(slow.__file__)


@pytest.fixture(autouse=True)
def one_thread():
    """As in the subprocesses: other numbers of threads may give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """All arrays of a run that nothing disturbed, by the way in which rows are kept."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    return {rows: arrays(slow_run(folder / rows, rows)._store.location) for rows in ROWS}


def arrays(location):
    return {name: array[...] for name, array in zarr.open_group(location, mode="r").arrays()}


def assert_same(location, expected):
    found = arrays(location)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def chunks(folder):
    """Chunk files that are there, of the record and of intermediate results."""
    found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.name.isdigit()]


def start(place, rows, seconds):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, SCRIPT, place, rows, seconds]
    return subprocess.Popen([str(a) for a in arguments], env=environment)


# Stopped


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
def test_ten_kills_and_a_resume_give_the_bits_of_an_undisturbed_run(tmp_path, undisturbed, rows):
    """Ten kills spread over the three ways to keep rows and over the whole of a run."""
    place = tmp_path / "run.zarr"
    moments = random.Random(rows).sample(
        range(8, 40), {"memory": 3, "zarr": 3, "recompute": 4}[rows]
    )
    for moment in sorted(moments):
        process = start(place, rows, 0.02)
        while process.poll() is None and len(chunks(place)) < moment:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, "the run was over before it was killed"
        assert not InfluenceRun(place).is_complete
    assert_same(slow_run(place, rows)._store.location, undisturbed[rows])


class Interrupting(slow.Slow):
    """Is interrupted after some batches, once."""

    left = 18

    def forward(self, x):
        Interrupting.left -= 1
        if Interrupting.left == 0:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("left", [3, 30, 45])
def test_ctrl_c_loses_one_piece_of_work(tmp_path, monkeypatch, undisturbed, left):
    place = tmp_path / "run.zarr"
    monkeypatch.setattr(slow, "Slow", Interrupting)
    monkeypatch.setattr(Interrupting, "left", left)
    with pytest.raises(KeyboardInterrupt):
        slow_run(place)
    assert not InfluenceRun(place).is_complete
    with pytest.raises(StoreError, match=r"is not complete .* to go on"):
        InfluenceRun(place).top(1)
    done = slow_run(place)
    monkeypatch.undo()
    scores = undisturbed["recompute"]["scores"]
    np.testing.assert_array_equal(done.scores[...], scores)
    lost = 3 * N + M - done.attrs["gradients"]  # counted are only pieces of work that were done
    assert lost == 0


# Damaged


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


DAMAGES = [flip, truncate, empty, Path.unlink]
ARRAYS = [
    ("scores", "1/3"),
    ("factors", "1/0"),
    ("squared_norms", "2/0"),
    ("mean_influence", "4"),
    ("damping", "0"),
    ("train", "0"),
    ("test_text", "0"),
    ("rows", "5/0"),
    ("row_scales", "5/0"),
]
METADATA = {"test": {"text": [f"text {i}" for i in range(M)]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete run with stored rows, and its arrays."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("whole") / "run.zarr"
    slow_run(place, "zarr", metadata=METADATA)
    return place, arrays(place)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "chunk"), ARRAYS)
def test_a_damaged_chunk_is_named_and_repaired(tmp_path, whole, name, chunk, damage):
    place = tmp_path / "run.zarr"
    shutil.copytree(whole[0], place)
    before = {path: path.stat().st_mtime_ns for path in chunks(place)}
    damage(place / name / "c" / chunk)
    with pytest.raises(StoreError, match=f"1 missing or damaged chunks: {name}/c/{chunk}. Call"):
        InfluenceRun(place).check()
    slow_run(place, "zarr", metadata=METADATA)
    assert_same(place, whole[1])
    InfluenceRun(place).check()
    changed = {p for p in chunks(place) if before[p] != p.stat().st_mtime_ns}
    assert place / name / "c" / chunk in changed
    assert not {p for p in changed if p.parts[-3] == "scores" or "scores" in p.parts} - {
        place / "scores" / "c" / "1" / "3"
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_reading_damaged_results_names_the_chunk(tmp_path, whole, damage):
    place = tmp_path / "run.zarr"
    shutil.copytree(whole[0], place)
    damage(place / "scores" / "c" / "2" / "1")
    damage(place / "mean_influence" / "c" / "0")
    run = InfluenceRun(place)
    assert len(run.top(3, test=0)[0]) == 3  # of another tile
    with pytest.raises(StoreError, match="scores/c/2/1"):
        run.top(3, test=8)
    with pytest.raises(StoreError, match="mean_influence/c/0"):
        run.mean_influence()


def test_a_damaged_score_tile_costs_only_its_own_rows(tmp_path, undisturbed):
    place = tmp_path / "run.zarr"
    first = slow_run(place)
    flip(place / "scores" / "c" / "0" / "2")
    again = slow_run(place)
    assert again.attrs["gradients"] == first.attrs["gradients"] + 8
    assert_same(place, undisturbed["recompute"])


@pytest.mark.parametrize("name", ["top", "top_scores"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tops_are_repaired(tmp_path, name, damage):
    place = tmp_path / "run.zarr"
    slow_run(place, top_k=3)
    expected = arrays(place)
    damage(place / name / "c" / "1" / "0" / "0")
    with pytest.raises(StoreError, match=f"{name}/c/1/0/0"):
        InfluenceRun(place).top(2)
    slow_run(place, top_k=3)
    assert_same(place, expected)


# No room, no permission


@pytest.mark.parametrize("writes", [0, 1, 12, 30, 55])
def test_a_full_disk_leaves_a_store_that_can_go_on(tmp_path, monkeypatch, undisturbed, writes):
    place = tmp_path / "run.zarr"
    original, left = LocalStore.set, [writes]

    async def limited(self, key, value, byte_range=None):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", limited)
    with pytest.raises(StoreError, match=r"(?s)No space left.*make room, and call run_influences"):
        slow_run(place)
    monkeypatch.undo()
    assert_same(slow_run(place)._store.location, undisturbed["recompute"])


def test_a_file_size_limit_leaves_a_store_that_can_go_on(tmp_path, undisturbed):
    place = tmp_path / "run.zarr"
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import slow; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1300, resource.RLIM_INFINITY)); "
        "slow.torch.set_num_threads(1); slow.slow_run(sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(SCRIPT.parent), str(place)]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert "StoreError" in failed.stderr
    assert "File too large" in failed.stderr
    assert_same(slow_run(place)._store.location, undisturbed["recompute"])


def test_a_read_only_store_is_refused(tmp_path):
    slow_run(tmp_path / "run.zarr")
    (tmp_path / "run.zarr" / "scores" / "c" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="read-only"):
        slow_run(LocalStore(tmp_path / "run.zarr", read_only=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        slow_run(tmp_path / "run.zarr")


# Other runs and other things


def other_model():
    model = slow.Slow()
    model.layers[0].bias.data[0] += 1
    return {"influence": DataInfInfluence(model, F.cross_entropy)}


def other_label():
    train = loader(N, 2)
    train.dataset.tensors[1][7] = (train.dataset.tensors[1][7] + 1) % 4
    return {"train": train}


OTHERS = {
    "model": (other_model, r"model: 1 differ \('layers\.0\.bias'\)"),
    "label": (other_label, "training data: "),
    "length": (lambda: {"train": loader(N - 1, 2)}, "training samples: 60 in the store, 59 now"),
    "test data": (lambda: {"test": loader(M, 5)}, "test data: "),
    "damping": (
        lambda: {"influence": DataInfInfluence(slow.Slow(), F.cross_entropy, 0.1)},
        r"damping: 2 differ \('layers\.0', 'layers\.2'\)",
    ),
    "blocks": (
        lambda: {"influence": DataInfInfluence(slow.Slow(), F.cross_entropy, "auto", "full")},
        "blocks: 3 differ",
    ),
    "loss": (
        lambda: {"influence": DataInfInfluence(slow.Slow(), F.multi_margin_loss)},
        "objective: .*cross_entropy.*multi_margin_loss",
    ),
    "top": (lambda: {"top_k": 2}, "top_k: None in the store, 2 now"),
    "by block": (lambda: {"by_block": True}, "by_block: False in the store, True now"),
    "ids": (lambda: {"ids": {"test": list("abcdefghi")}}, "ids and metadata: "),
    "groups": (lambda: {"query_groups": [0] * M}, "query groups: "),
    "told": (lambda: {"metadata": {"run": {"rate": 1}}}, "run metadata: "),
    "rows": (lambda: {"rows": "zarr"}, "rows: 'recompute' in the store, 'zarr' now"),
}


@pytest.fixture(scope="module")
def existing(tmp_path_factory):
    place = tmp_path_factory.mktemp("existing") / "run.zarr"
    slow_run(place)
    return place


@pytest.mark.parametrize("what", OTHERS)
def test_a_store_of_another_run_is_refused_with_what_differs(existing, what):
    make, message = OTHERS[what]
    before = {path: path.read_bytes() for path in existing.rglob("*") if path.is_file()}
    given = {
        "influence": DataInfInfluence(slow.Slow(), F.cross_entropy),
        "test": loader(M, 1),
        "train": loader(N, 2),
        "rows": "recompute",
        "tile": (4, 8),
        **make(),
    }
    with pytest.raises(StoreExistsError, match=f"(?s)holds another run.*{message}.*overwrite=True"):
        run_influences(store=existing, progress=False, **given)
    assert {p: p.read_bytes() for p in existing.rglob("*") if p.is_file()} == before


def test_overwrite_replaces_a_run(tmp_path):
    slow_run(tmp_path / "run.zarr")
    done = slow_run(tmp_path / "run.zarr", top_k=2, overwrite=True)
    assert done.scores is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr", "run.zarr.lock"]


def test_a_store_of_another_format_version_is_refused(tmp_path):
    place = tmp_path / "run.zarr"
    slow_run(place)
    zarr.open_group(place).attrs["format_version"] = 2
    for call in (lambda: InfluenceRun(place), lambda: slow_run(place, overwrite=True)):
        with pytest.raises(
            StoreError, match="format version 2; this version of the package reads 1"
        ):
            call()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    zarr.create_group(tmp_path / "group", attributes={"mine": 1})
    for name in ("folder", "file", "group"):
        with pytest.raises(StoreExistsError, match="Choose another place"):
            slow_run(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more work"
    assert zarr.open_group(tmp_path / "group").attrs["mine"] == 1


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "run.zarr").mkdir()
    assert slow_run(tmp_path / "run.zarr").is_complete


def test_there_is_nothing_to_open(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        InfluenceRun(tmp_path / "run.zarr")


def test_a_second_run_on_one_store_is_refused(tmp_path, undisturbed):
    place = tmp_path / "run.zarr"
    process = start(place, "recompute", 0.05)
    try:
        while not chunks(place):
            assert process.poll() is None
            time.sleep(0.005)
        with pytest.raises(StoreError, match="Another run is writing to"):
            slow_run(place)
    finally:
        process.kill()
        process.wait(60)
    assert_same(slow_run(place)._store.location, undisturbed["recompute"])


def test_the_lock_holds_within_a_process(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with store.Store(tmp_path / "run.zarr").locked():
            inside.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(60)
    with pytest.raises(StoreError, match="Another run"):
        slow_run(tmp_path / "run.zarr")
    leave.set()
    holder.join()


# Bad data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("side", "position"), [("train", 37), ("test", 6)])
def test_a_gradient_that_is_not_finite_names_its_sample(tmp_path, side, position, value):
    data = {"train": loader(N, 2), "test": loader(M, 1)}
    data[side].dataset.tensors[0][position] = value
    ids = {"train": [f"t{i}" for i in range(N)], "test": [f"q{i}" for i in range(M)]}
    influence = DataInfInfluence(slow.Slow(), F.cross_entropy)
    with pytest.raises(ModelError, match=f"Position {position} of the .*{ids[side][position]}"):
        run_influences(influence, **data, store=tmp_path / "run.zarr", ids=ids, progress=False)
    assert not InfluenceRun(tmp_path / "run.zarr").is_complete


class Noisy(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(3), i % 4


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader(N, 2).dataset)


def test_data_that_changes_between_reads_is_refused(tmp_path):
    influence = DataInfInfluence(slow.Slow(), F.cross_entropy)
    with pytest.raises(SourceError, match="differs between two reads"):
        run_influences(influence, loader(M, 1), Noisy(), tmp_path / "run.zarr", progress=False)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (DataLoader(Noisy(), 4, shuffle=True), "random order"),
        (Stream(), "stream"),
        ([], "is empty"),
        (iter(loader(N, 2)), "Pass a dataset"),
    ],
)
def test_data_without_order_is_refused_before_a_store_is_made(tmp_path, train, message):
    influence = DataInfInfluence(slow.Slow(), F.cross_entropy)
    with pytest.raises(SourceError, match=message):
        run_influences(influence, loader(M, 1), train, tmp_path / "run.zarr", progress=False)
    assert not (tmp_path / "run.zarr").exists()


def test_a_model_that_was_fitted_on_other_data_is_refused(tmp_path):
    fitted = DataInfInfluence(slow.Slow(), F.cross_entropy).fit(loader(N - 1, 2))
    with pytest.raises(SourceError, match="fitted on 59 samples, and the training data has 60"):
        run_influences(fitted, loader(M, 1), loader(N, 2), tmp_path / "run.zarr", progress=False)
    assert not (tmp_path / "run.zarr").exists()


class Bare(nn.Module):
    """Owns a parameter itself, so that a block has the empty name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.out = nn.Parameter(torch.randn(3)), nn.Linear(3, 4)

    def forward(self, x):
        return self.out(x * self.shift)


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize(
    ("structure", "names"),
    [
        ("module", ["", "out"]),
        ({"a/b": ["out.weight"], "c\\d .": ["shift", "out.bias"]}, ["a/b", "c\\d ."]),
    ],
)
@pytest.mark.parametrize("rows", ROWS)
def test_names_of_blocks_survive(tmp_path, structure, names, rows):
    influence = DataInfInfluence(Bare(), F.cross_entropy, block_structure=structure)
    settings = {"rows": rows, "by_block": True, "progress": False}
    place = tmp_path / "run.zarr"
    run = run_influences(influence, loader(M, 1), loader(N, 2), place, **settings)
    assert list(InfluenceRun.open(place).damping) == names
    fitted = influence.fit(loader(N, 2))
    x, y = loader(M, 1).dataset.tensors
    for i, scores in enumerate(fitted.training_influences(x, y, by_block=True).values()):
        error = 1e-3 if rows == "zarr" else 1e-5
        expected = scores.numpy()
        np.testing.assert_allclose(
            run.scores[:, i], expected, rtol=error, atol=error * np.abs(expected).max()
        )


# Lost workers, and workers that do not suit


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
def test_a_killed_dask_worker_is_replaced(tmp_path, undisturbed, rows):
    place = tmp_path / "run.zarr"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        victim = min(client.run(os.getpid).values())

        def kill():
            while len(chunks(place)) < 14:
                time.sleep(0.005)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        done = slow_run(place, rows, 0.02, client=client)
        killer.join(60)
        assert not killer.is_alive()
        assert victim not in client.run(os.getpid).values()
    expected = undisturbed[rows]["scores"]
    np.testing.assert_allclose(
        done.scores[...], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


class Dying(slow.Slow):
    """Kills the process that it is in, unless that is the one that made it; once."""

    def __init__(self, flag):
        super().__init__()
        self.flag, self.home, self.batches = flag, os.getpid(), 0

    def forward(self, x):
        self.batches += 1
        if self.batches == 12 and os.getpid() != self.home and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


@pytest.mark.slow
def test_a_killed_joblib_worker_leaves_a_store_that_can_go_on(tmp_path, monkeypatch, undisturbed):
    place, flag = tmp_path / "run.zarr", tmp_path / "killed"
    monkeypatch.setattr(slow, "Slow", lambda seconds: Dying(flag))
    with pytest.raises(ClusterError, match="A worker process died"):
        slow_run(place, "recompute", n_jobs=2)
    assert flag.exists()
    expected = undisturbed["recompute"]["scores"]
    scores = slow_run(place, "recompute", n_jobs=2).scores[...]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_workers_with_two_threads_are_refused(tmp_path):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None, processes=False
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(ClusterError, match="--nthreads 1"):
            slow_run(tmp_path / "run.zarr", client=client)
        client.close()
        with pytest.raises(ClusterError, match="client is closed"):
            slow_run(tmp_path / "run.zarr", client=client)
    assert not (tmp_path / "run.zarr").exists()


def test_a_cluster_without_workers_is_refused(tmp_path):
    with (
        LocalCluster(n_workers=0, dashboard_address=None, processes=False) as cluster,
        Client(cluster) as client,
        pytest.raises(ClusterError, match="no workers"),
    ):
        slow_run(tmp_path / "run.zarr", client=client)


def test_an_unreachable_scheduler_is_named(tmp_path):
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"),
    ):
        slow_run(tmp_path / "run.zarr", client="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_workers_without_the_package_are_named(tmp_path):
    (tmp_path / "block.py").write_text("import sys; sys.modules['pydvl_datainf'] = None\n")
    file = ["--scheduler-file", str(tmp_path / "scheduler.json")]
    dask, quiet = Path(sys.executable).with_name("dask"), {"stderr": subprocess.DEVNULL}
    scheduler = [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *file]
    worker = [dask, "worker", "--nthreads", "1", "--no-dashboard", "--preload", "block.py", *file]
    processes = [subprocess.Popen(scheduler, cwd=tmp_path, **quiet)]
    try:
        processes.append(subprocess.Popen(worker, cwd=tmp_path, **quiet))
        with Client(scheduler_file=file[1], timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(ClusterError, match="has pydvl-datainf none"):
                slow_run(tmp_path / "run.zarr", client=client)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


def test_a_store_in_memory_is_not_for_workers(tmp_path):
    with pytest.raises(StoreError, match="in this process's memory"):
        slow_run(MemoryStore(), n_jobs=2)


def test_threads_of_joblib_are_refused(tmp_path):
    import joblib

    with (
        joblib.parallel_config("threading", n_jobs=2),
        pytest.raises(ValueError, match="ThreadingBackend, runs threads"),
    ):
        slow_run(tmp_path / "run.zarr")
