"""Runs that something stops: a signal, a full disk, a missing right, or their own model.

It is a module of its own so that other processes can import it. They come from a fork server that
has torch loaded, so that ten of them cost little more than one.
"""

import asyncio
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
import torch
from distributed import Client
from joblib.externals.loky.backend import context as loky
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zarr.storage import LocalStore

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.results.reader import InfluenceRun

N, M = 23, 11
TILE = 3, 6  # (test, train): 4 and 4 tiles, the last ones shorter
TIGHT = {"memory": 20_000, "zarr": 20_000, "recompute": 15_000}  # memory for two groups of queries
TIMEOUT = 60
PROCESSES = multiprocessing.get_context("forkserver")


# What is run


def unwatched(x):
    return x


class Network(nn.Module):
    """A small classifier; `watch` sees its inputs first, and may change them, stop or kill."""

    def __init__(self, watch=unwatched, hidden=5):
        super().__init__()
        self.watch = watch
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 4))

    def forward(self, x):
        return self.layers(self.watch(x))


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 3, generator=generator), torch.arange(length) % 4


def loader(data, batch_size):
    return DataLoader(TensorDataset(*data), batch_size)


def build(watch=unwatched, hidden=5, **settings):
    return DataInfInfluence(Network(watch, hidden), F.cross_entropy, **settings)


def run(store, watch=unwatched, *, influence=None, test=None, train=None, **settings):
    """A run of N training samples in batches of 5 (the last of 3), M queries in batches of 4."""
    usual = {"rows": "recompute", "tile": TILE, "memory": "1MiB", "progress": False}
    return run_influences(
        build(watch) if influence is None else influence,
        loader(samples(M, 2), 4) if test is None else test,
        loader(samples(N, 1), 5) if train is None else train,
        store,
        **usual | settings,
    )


SIDES = {"train": (N, 1, 5, "training"), "test": (M, 2, 4, "test")}


def with_value(side, position, value):
    """Loaders of which one has a sample with one input of that value."""
    length, seed, batch_size, _ = SIDES[side]
    x, y = samples(length, seed)
    x[position, 1] = value
    return {side: loader((x, y), batch_size)}


def root_of_sum(outputs, y):
    """A loss whose derivative is infinite where it is zero."""
    return outputs.sum(1).abs().sqrt().sum()


def chunks(folder):
    """The chunk files of results, without intermediate ones, while others write."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    names = (file.relative_to(folder) for file in found if file.name.isdigit())
    return {str(name) for name in names if name.parts[0] != "work"}


# What watches a model


@dataclass
class Pause:
    """Slows every forward pass down, so that something can happen in the meantime."""

    seconds: float

    def __call__(self, x):
        time.sleep(self.seconds)
        return x


@dataclass
class Interrupt:
    """Ctrl-C in one of the forward passes."""

    left: int

    def __call__(self, x):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return x


@dataclass
class Block:
    """Says that it is there, and stays there."""

    sign: Path

    def __call__(self, x):
        self.sign.touch()
        time.sleep(10 * TIMEOUT)
        return x


@dataclass
class Hold:
    """Says which process it is in, and stays there until it may go on."""

    signs: Path
    go: Path

    def __call__(self, x):
        (self.signs / str(os.getpid())).touch()
        wait_for(self.go.exists)
        return x


@dataclass
class Replace:
    """Puts another run in the place of one."""

    place: Path
    source: Path

    def __call__(self, x):
        shutil.rmtree(self.place)
        shutil.copytree(self.source, self.place)
        return x


@dataclass
class Poison:
    """Replaces one sample by a number that is none, as a fault that passes would."""

    sample: torch.Tensor
    value: float

    def __call__(self, x):
        hit = (x == self.sample).all(1, keepdim=True)
        return torch.where(hit, self.value, x)


@dataclass
class Deadly:
    """Kills any process but the first one once some results are there."""

    survivor: int
    folder: Path
    enough: int

    def __call__(self, x):
        if os.getpid() != self.survivor and len(chunks(self.folder)) >= self.enough:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


# What runs in a process of its own


class SlowStore(LocalStore):
    """Takes some time for each file."""

    async def set(self, key, value):
        await super().set(key, value)
        await asyncio.sleep(0.002)


def run_slowly(folder, rows):
    run(SlowStore(folder), Pause(0.002), rows=rows, memory=TIGHT[rows])


def run_killed_in_write(folder, key, count, settings):
    die_in_write(folder, key, count)
    run(folder, **settings)


def die_in_write(folder, key, count):
    """Dies when a file is written for the count-th time, and has not got its name yet."""
    replace, seen = Path.replace, []

    def replace_or_die(self, target):
        seen.append(target.relative_to(folder).as_posix())
        if seen.count(key) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = replace_or_die


def run_blocked(folder, sign):
    run(folder, Block(sign))


def run_held(folder, signs, go, settings):
    run(folder, Hold(signs, go), **settings)


def run_held_in(temporary, *arguments):
    """With temporary files there, in its own processes too."""
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    run_held(*arguments)


def run_killed_in_deletion(folder, name, settings):
    """Dies when some of a folder of that name is deleted."""
    rmtree = shutil.rmtree

    def rmtree_or_die(path, *arguments, **options):
        if re.fullmatch(name, Path(path).name):
            (Path(path) / "zarr.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(path, *arguments, **options)

    shutil.rmtree = rmtree_or_die
    run(folder, **settings)


def run_with_largest_file(folder, size, hidden):
    """As on a full disk: no file may become larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run(folder, influence=build(hidden=hidden))


def run_without_rights(folder, **settings):
    become_nobody()
    run(folder, **settings)


def replace_without_rights(folder):
    run_without_rights(folder, overwrite=True)


def read_without_rights(folder):
    become_nobody()
    done = InfluenceRun(folder)
    done.check()
    done.top(2), done.mean_influence(), done.self_influence()


def become_nobody():
    """Root could write everywhere."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


# Processes


def start_fork_server():
    """One thread for each process, and the imports done; joblib's come from it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        # The last is what the first call of vmap imports; loading an adapter needs peft.
        imports = "stopped_run", "pytest", "distributed", "peft"
        PROCESSES.set_forkserver_preload([*imports, "torch.fx.experimental.symbolic_shapes"])
        forkserver.ensure_running()
    loky.set_start_method("forkserver", force=True)


def started(function, *arguments, daemon=True):
    process = PROCESSES.Process(target=function, args=arguments, daemon=daemon)
    process.start()
    return process


def ended(function, *arguments):
    """How a process ended that came to its end by itself: its exit code."""
    process = started(function, *arguments)
    process.join(TIMEOUT)
    code = process.exitcode
    process.kill()
    return code


def wait_for(condition, process=None):
    """Polls; stops early where the process ends, and fails where nothing happens."""
    deadline = time.monotonic() + TIMEOUT
    while not condition() and (process is None or process.is_alive()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def killed(process):
    """Kills a process; returns how it ended."""
    process.kill()
    process.join(TIMEOUT)
    return process.exitcode


def outcome(function, *arguments):
    """What a process raised, or None."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = started(_report, sender, function, *arguments)
    try:
        assert receiver.poll(TIMEOUT)
        return receiver.recv()
    finally:
        killed(process)


def _report(sender, function, *arguments):
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception as error:
        sender.send(error)
    else:
        sender.send(None)


def is_alive(pid):
    """Whether a process runs that may be another one's child."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serve(name, arguments, folder):
    """`dask scheduler` or `dask worker`, in a folder, without its log."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    importlib.import_module(f"distributed.cli.dask_{name}").main(arguments)


@contextmanager
def cluster(folder):
    """A Dask cluster with a worker that shares no process with it: address and processes."""
    address_file = folder / "scheduler.json"
    processes = [started(serve, "scheduler", ["--port", "0", *_place(address_file)], folder)]
    try:
        wait_for(address_file.exists, processes[0])
        worker = ["--nthreads", "1", "--no-nanny", *_place(address_file)]
        processes.append(started(serve, "worker", worker, folder))
        yield _address_of_one(address_file), processes
    finally:
        for process in reversed(processes):
            killed(process)


def _place(address_file):
    return ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(address_file)]


def _address_of_one(address_file):
    """The address of a scheduler, once it has a worker."""
    with Client(scheduler_file=str(address_file), timeout=TIMEOUT) as client:
        client.wait_for_workers(1, timeout=TIMEOUT)
    return json.loads(address_file.read_text())["address"]


@contextmanager
def cluster_from_the_command_line(folder, options=()):
    """The address of a scheduler with one worker, which do the imports themselves."""
    address_file = folder / "scheduler.json"
    command = [str(Path(sys.executable).with_name("dask"))]
    place = _place(address_file)
    scheduler = [*command, "scheduler", "--port", "0", *place]
    worker = [*command, "worker", "--nthreads", "1", "--no-nanny", *options, *place]
    quiet = {
        "stderr": subprocess.DEVNULL,
        "cwd": folder,
        "env": os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    }
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        wait_for(address_file.exists)
        processes.append(subprocess.Popen(worker, **quiet))
        yield _address_of_one(address_file)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(TIMEOUT)
