"""A small classifier with its data, and the mean influences that are its samples' values."""

from functools import partial

import numpy as np
import torch
from pydvl.valuation.dataset import Dataset, GroupedDataset
from torch.nn import functional as F

import dense
from pydvl_datainf import DataInfInfluence
from pydvl_datainf.valuation import DataInfValuation
from small_runs import network

N, M = 13, 5
GROUPS = np.array([2, 0, 1, 2, 0, 2, 1, 1, 0, 2, 2, 0, 1])
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


def samples(length, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(length, 3)), rng.integers(0, 4, length)


def build(**settings):
    return DataInfInfluence(network(), F.cross_entropy, **settings)


def oracle_rows(model, loss, blocks, data):
    """Rows of each block, by the oracle."""
    pair = tuple(torch.as_tensor(side) for side in data)
    return {block: dense.gradients(model, loss, pair, names) for block, names in blocks.items()}


def oracle(train, test, model=None, damping=None):
    """Influences (m, n) by the dense formula."""
    rows = partial(oracle_rows, model or network(), F.cross_entropy, BLOCKS)
    test, train = rows(test), rows(train)
    given = {b: damping or dense.automatic_damping(g) for b, g in train.items()}
    return dense.influences(test, train, train, given).numpy()


TRAIN, TEST = samples(N, 1), samples(M, 2)


def grouped(**settings):
    return GroupedDataset(*TRAIN, data_groups=GROUPS, **settings)


def group_scores(scores):
    """Influences of the groups 0, 1, 2, by explicit sums."""
    return np.stack([scores[:, g == GROUPS].sum(1) for g in range(3)], 1)


def values_of(train=TRAIN, test=TEST, influence=None, **settings):
    return DataInfValuation(influence or build(), test, **settings).fit(Dataset(*train)).result


def tensors(data):
    return tuple(torch.as_tensor(side) for side in data)
