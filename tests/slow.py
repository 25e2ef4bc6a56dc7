"""A slow run for a subprocess that is to be killed: python slow.py STORE ROWS SECONDS.

The model takes SECONDS for each batch, so that a kill falls into the middle of the run.
"""

import sys
import time
import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from pydvl_datainf import DataInfInfluence, run_influences  # noqa: E402

N, M = 60, 9


class Slow(nn.Module):
    """Takes its time for each batch."""

    def __init__(self, seconds=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.layers(x)


def loader(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator)
    y = torch.randint(0, 4, (length,), generator=generator)
    return DataLoader(TensorDataset(x, y), 4)


def slow_run(store, rows="recompute", seconds=0.0, **settings):
    settings = {"tile": (4, 8), "progress": False, **settings}
    influence = DataInfInfluence(Slow(seconds), F.cross_entropy)
    return run_influences(influence, loader(M, 1), loader(N, 2), store, rows=rows, **settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    slow_run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
