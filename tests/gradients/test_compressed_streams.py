"""Streams that are taken to be in fixed order, and are not: compressed rows would be mixed up."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fitted import Problem, close
from pydvl_datainf import DataInfInfluence, SourceError

RANK = 24  # more than the parameters of a block: nothing is lost


class Shuffled(IterableDataset):
    """The same samples in another order, or turned by a little, each time."""

    def __init__(self, x, y, noise=0.0):
        self.x, self.y, self.noise = x, y, noise
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        order = torch.randperm(len(self.y), generator=self.generator)
        x = self.x + self.noise
        self.noise *= 2
        return iter([(x[i], self.y[i]) for i in (range(len(order)) if self.noise else order)])


def influences(p, data, **settings):
    influence = DataInfInfluence(p.model, F.cross_entropy, **settings).fit(data)
    return influence.influences(*p.test, *p.train)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize(
    "as_batches", [lambda data: DataLoader(data, 4), lambda data: batches(data)]
)
def test_data_that_is_other_each_time_is_refused(as_batches, noise):
    p = Problem(None)
    data = as_batches(Shuffled(*p.fitted, noise))
    with pytest.raises(SourceError, match="or the same in another order"):
        influences(p, data, rows="compressed", rank=RANK, basis_sample=4)


class batches:
    """An iterable of one's own, of batches of a single sample."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return ((x[None], y[None]) for x, y in self.data)


def test_what_the_error_names_gives_the_same():
    p = Problem(None)
    expected = influences(p, p.batches(), rows="memory")
    shuffled = DataLoader(TensorDataset(*p.fitted), 4, shuffle=True)
    compressed = {"rows": "compressed", "rank": RANK, "basis_sample": 4}
    close(influences(p, DataLoader(Shuffled(*p.fitted), 4), rows="memory"), expected)
    close(influences(p, shuffled, **compressed), expected)
    close(influences(p, DataLoader(TensorDataset(*p.fitted), 4), **compressed), expected)
