"""Prints as JSON how many bytes runs take at their peak, above the process with model and data.

Linux only: what counts is resident memory. malloc must give every array a mapping of its own, so
that memory that is freed is not resident: MALLOC_MMAP_THRESHOLD_=65536.
"""

import json
import sys
import tempfile
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from pydvl_datainf import DataInfInfluence, ExactInfluence, run_influences  # noqa: E402

WIDTH, CLASSES = 127, 16
LINEAR = (WIDTH, CLASSES)  # 2,048 parameters
DEEP = (WIDTH, 16, 120, 16, CLASSES)  # 2,048 and 2,040 and 1,936 and 272


def network(sizes):
    layers = (part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh()))
    return nn.Sequential(*layers)


def resident(field):
    """VmRSS (now) or VmHWM (peak) in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(call):
    """By how many bytes resident memory rises during a call, at most; and what it returns."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    result = call()
    return resident("VmHWM") - before, result


def samples(length):
    return TensorDataset(torch.randn(length, WIDTH), torch.randint(0, CLASSES, (length,)))


def peaks(cases, folder):
    """What each run took, and asking it for the best of all queries; its groups; which is held."""
    torch.manual_seed(0)
    models = {
        "linear": DataInfInfluence(network(LINEAR), F.cross_entropy, batch_size=32),
        "deep": DataInfInfluence(network(DEEP), F.cross_entropy, batch_size=32),
        "exact": ExactInfluence(network(DEEP), F.cross_entropy, batch_size=32),
    }
    run_to = partial(run_influences, progress=False)
    few = samples(64)  # so that what libraries load at first use does not count
    for name, influence in models.items():
        run_to(influence, few, few, f"{folder}/few {name}.zarr", top_k=2, rows="zarr").top(1)
    found = {}
    for name, (model, m, n, settings) in cases.items():
        data = samples(m), samples(n)
        call = partial(run_to, models[model], *data, f"{folder}/{name}.zarr", **settings)
        taken, run = peak(call)
        plan = run.plan
        held = [2 * n * width <= plan.held for _, width in plan.pieces]
        found[name] = taken, peak(partial(run.top, 10))[0], len(plan.groups), held
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(peaks(json.loads(sys.argv[1]), folder)))
