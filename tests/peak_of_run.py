"""Prints as JSON how many bytes runs take at their peak, above the process with model and data.

Linux only: what counts is resident memory. malloc must give every array a mapping of its own, so
that memory that is freed is not resident: MALLOC_MMAP_THRESHOLD_=65536.
"""

import json
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from pydvl_datainf import DataInfInfluence, run_influences  # noqa: E402

WIDTH, CLASSES = 127, 16  # 2,048 parameters


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
    """For each case the peak of its run, and that of asking it for the best of all queries."""
    torch.manual_seed(0)
    influence = DataInfInfluence(nn.Linear(WIDTH, CLASSES), F.cross_entropy, batch_size=32)
    run_to = partial(run_influences, influence, progress=False)
    few = samples(64)  # so that what libraries load at first use does not count
    run_to(few, few, f"{folder}/few.zarr", top_k=2).top(1)
    found = {}
    for name, (m, n, settings) in cases.items():
        test, train = samples(m), samples(n)
        taken, run = peak(partial(run_to, test, train, f"{folder}/{name}.zarr", **settings))
        found[name] = taken, peak(partial(run.top, 10))[0]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(peaks(json.loads(sys.argv[1]), folder)))
