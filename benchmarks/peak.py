"""Prints how much memory one job takes at its peak, in MiB: python benchmarks/peak.py memory 512.

Linux only. What counts is the resident memory above that of the process with the model and all
token ids loaded.
"""

import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402

import workload  # noqa: E402
from run import job  # noqa: E402


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


torch.set_num_threads(1)
rows, train = sys.argv[1], int(sys.argv[2])
model = workload.lora_model()
fitted, queries = workload.reviews(train, 16)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = resident("VmRSS")
if rows == "bare":
    workload.forward_and_backward(model, [*fitted[:4], *queries])
else:
    job(model, fitted, queries, rows)
print(resident("VmHWM") - before)
