"""Prints the peak memory of one run in MiB: python benchmarks/scale_peak.py ROWS N M MEMORY.

Linux only. What counts is resident memory above that of the process with model and data; ROWS
"bare" makes the forward and backward passes of a few batches alone, for what the model takes.
"""

import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import scale_workload  # noqa: E402
from pydvl_datainf import run_influences  # noqa: E402


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


torch.set_num_threads(1)
rows, n, m, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
influence, train = scale_workload.influence(), scale_workload.Texts(n)
with tempfile.TemporaryDirectory() as folder:
    # A small run first, so that what libraries load at first use does not count.
    few = scale_workload.Texts(64)
    run_influences(influence, few, few, f"{folder}/few.zarr", rows="zarr", progress=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    if rows == "bare":
        for batch in DataLoader(scale_workload.Texts(256), scale_workload.BATCH_SIZE):
            influence.objective.losses(influence.model, batch).sum().backward()
    else:
        settings = {"rows": rows, "memory": memory, "progress": False}
        queries = scale_workload.queries(m)
        run_influences(influence, queries, train, f"{folder}/run.zarr", **settings)
    print(resident("VmHWM") - before)
