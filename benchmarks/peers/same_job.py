"""The same jobs by this package, pyDVL's own classes, dattri, kronfluence and bergson, in one run.

python benchmarks/peers/same_job.py --data DIR [--bank FOLDER] [--out results.json]

Each attempt is a process of its own with one thread, forked from this one, which has all libraries
loaded. Counted are seconds, the processor's seconds, resident memory above that with libraries,
model and data loaded, bytes on the disk, and by how much scores deviate from the formula in
float64. What is raised is the result of an attempt. DIR holds Fashion-MNIST; --bank is
perceptron-0.005.bank, which benchmarks/retraining.py leaves beside its results: with it, scores
are compared with retraining. Linux only; minutes on one core.
"""

import argparse
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from attempts import ATTEMPTS, Attempt
from setting import version_of

import jobs
from pydvl_datainf.yardstick import compare

SIZES = {"perceptron": ((1000, 100), (2000, 200)), "lora": ((1000, 50), (2000, 100))}
"""Training and test samples; the last ones of the perceptron are those of the bank."""

MOST_MEMORY, MOST_SECONDS = 12 << 30, 600
"""Of an attempt: more is an error of its own."""

LIBRARIES = ("torch", "transformers", "peft", "pyDVL", "dattri", "kronfluence", "bergson")
FORK = multiprocessing.get_context("fork")
POPULATE_READ = 22  # of madvise, in Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--out", type=Path, default=Path("same_job.json"))
    parser.add_argument("--only", default="", help="attempts with this in `job, library, what`")
    parser.add_argument("--sizes", help="n,m in place of all sizes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for module in {module for attempt in ATTEMPTS for module in attempt.modules}:
        try:
            importlib.import_module(module)
        except ImportError as missing:  # told again by each attempt
            print(f"{module}: {missing}")
    gc.freeze()  # what is loaded here is not for the collections of garbage that libraries order
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All attempts at all sizes, one after the other."""
    results, scores = [], {}
    for job, sizes in SIZES.items():
        attempts = [
            one
            for one in ATTEMPTS
            if one.job == job and options.only in f"{job}, {one.library}, {one.what}"
        ]
        file = folder / f"{job}.pt"
        if attempts:
            in_process(prepare, job, options.data, file)
        for n, m in [tuple(map(int, options.sizes.split(",")))] if options.sizes else sizes:
            right = in_process(find_truth, job, file, n, m, folder) if attempts else {}
            for one in attempts:
                found = in_process(measure, one, right["damping"], file, n, m, folder)
                told = {"job": job, "n": n, "m": m, "library": one.library, "what": one.what}
                results.append(told | {"formula": one.formula} | found)
                print(json.dumps(results[-1]), flush=True)
                if "error" not in found:
                    scores[len(results) - 1] = np.load(folder / "scores.npy")
    if options.bank:
        add_retraining(results, scores, options.bank)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    versions = {name: version_of(name) for name in LIBRARIES}
    seconds = round(sum(use.ru_utime + use.ru_stime for use in spent))
    return {"versions": versions, "processor seconds of all": seconds, "results": results}


def in_process(step: Callable[..., Any], *given: Any) -> Any:
    """What a step gives, in a process of its own."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=send, args=(there, step, given))
    process.start()
    there.close()
    try:
        if here.poll(MOST_SECONDS):
            return here.recv()
        process.kill()
        return {"error": f"not done after {MOST_SECONDS} s"}
    except EOFError:
        process.join()
        return {"error": f"the process ended with code {process.exitcode}"}
    finally:
        process.join()


def send(there: Any, step: Callable[..., Any], given: tuple[Any, ...]) -> None:
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):  # what libraries print
            os.dup2(nowhere.fileno(), stream)
        there.send(step(*given))


# Steps, each in a process


def prepare(job: str, data: str, file: Path) -> None:
    jobs.prepare(job, data, file)


def find_truth(job: str, file: Path, n: int, m: int, folder: Path) -> dict[str, float]:
    """Writes scores by the formulas; gives λ."""
    found = jobs.truth(jobs.load_job(job, file, n, m))
    damping = found.pop("damping")
    np.savez(folder / "truth.npz", **found)
    return {"damping": damping}


def measure(
    attempt: Attempt, damping: float, file: Path, n: int, m: int, folder: Path
) -> dict[str, Any]:
    """What it costs, and the largest deviation from its formula; writes the scores."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        try:
            job = jobs.load_job(attempt.job, file, n, m, damping)
            attempt.write(job, Path(own))
            scores, costs = costing(attempt, job, Path(own))
        except Exception as raised:  # whatever it is, it is the result
            place = traceback.extract_tb(raised.__traceback__)[-1]
            lines = str(raised).strip().splitlines() or [""]
            where = f"{Path(place.filename).name}, {place.name}"
            return {"error": f"{type(raised).__name__}: {lines[0][:200]} ({where})"}
    scores = np.asarray(scores, np.float64)
    if lacking := scores.size - np.isfinite(scores).sum():
        return costs | {"error": f"{lacking} of {scores.size} scores are not finite"}
    np.save(folder / "scores.npy", scores)
    if attempt.formula:
        right = np.load(folder / "truth.npz")[attempt.formula]
        costs["deviation"] = float(np.abs(scores - right).max() / np.abs(right).max())
    return costs


def costing(attempt: Attempt, job: jobs.Job, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Scores, and what they cost."""
    written = size_of(folder)
    map_libraries()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    scores = attempt.scores(job, folder)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resident("VmHWM") - before
    costs = {"seconds": wall, "processor seconds": cpu, "peak MiB": peak}
    rounded = {name: round(value, 2) for name, value in costs.items()}
    return scores, rounded | {"bytes on disk": size_of(folder) - written}


def map_libraries() -> None:
    """Maps their files, which otherwise count as memory of whoever uses them first."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/") and access.startswith("r"):
            start, end = (int(address, 16) for address in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), POPULATE_READ)


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def add_retraining(
    results: list[dict[str, Any]], scores: dict[int, np.ndarray], bank: Path
) -> None:
    """Adds the linear datamodelling score of those for all images, and its standard error."""
    n, m = SIZES["perceptron"][-1]
    suits = {
        str(place): found
        for place, found in scores.items()
        if results[place]["job"] == "perceptron" and found.shape == (m, n)
    }
    for place, found in compare(suits, bank).validations.items():
        results[int(place)]["lds"] = [round(found.lds, 4), round(found.error, 4)]


if __name__ == "__main__":
    main()
