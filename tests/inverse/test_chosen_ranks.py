"""Ranks of bases that are chosen: the least that hold a share of the energy."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from pydvl_datainf.errors import SourceError
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.coordinates import learn_bases, learn_ranks, least_rank


def rows(b, d, decay=0.6):
    """With singular values 1, decay, decay², …"""
    generator = torch.Generator().manual_seed(b)
    U = torch.linalg.qr(torch.randn(b, b, generator=generator, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    k = min(b, d)
    return (U[:, :k] * decay ** torch.arange(k)) @ V[:k]


def expected(S):
    energy = np.linalg.svd(S.numpy(), compute_uv=False) ** 2
    return next(r for r in range(1, len(energy) + 1) if energy[:r].sum() >= 0.95 * energy.sum())


@pytest.mark.parametrize(("b", "d"), [(7, 30), (30, 7), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("decay", [0.3, 0.9, 1.0])
def test_the_least_rank_that_holds_the_share(b, d, decay):
    S = rows(b, d, decay)
    assert least_rank(S, 100) == expected(S)
    assert least_rank(S.float() * 1e-15, 100) == expected(S)
    assert least_rank(S, 2) == min(2, expected(S))


def test_what_holds_it_is_not_what_its_neighbour_holds():
    """Negative control: decay and share are such that ranks differ."""
    found = [least_rank(rows(20, 30, decay), 100) for decay in (0.3, 0.6, 0.9, 0.97)]
    assert found == sorted(set(found))


@pytest.mark.parametrize("S", [torch.zeros(4, 9), torch.ones(4, 9), torch.eye(9)[[2, 2, 2]]])
def test_rows_of_one_direction_or_none_keep_one_number(S):
    assert least_rank(S, 5) == 1


def test_sizes_are_bounded_until_ranks_are_chosen():
    asked, widths = Compression("auto"), {"a": 5, "b": 400, "c": 9}
    assert asked.is_open
    assert asked.sample_size(10**4) == 512
    assert asked.widths(widths, 10**4) == {"a": 5, "b": 256, "c": 9}
    assert asked.shapes(widths, 10**4) == {0: (5, 5), 1: (256, 400), 2: (9, 9)}
    assert asked.widths(widths, 7) == {"a": 5, "b": 7, "c": 7}
    known = asked.with_ranks([2, 30, 9])
    assert known.widths(widths, 10**4) == {"a": 2, "b": 30, "c": 9}
    assert known.shapes(widths, 10**4) == {0: (2, 5), 1: (30, 400)}  # the last is kept whole
    assert known.opened() == asked
    S = OrderedDict(a=rows(20, 5), b=rows(20, 400), c=rows(20, 9, 1.0))
    learned = learn_ranks(asked, S)
    assert learned.ranks == tuple(map(expected, S.values()))
    assert learn_ranks(learned, S) is learned
    assert {block: tuple(B.shape) for block, B in learn_bases(learned, S).items()} == {
        "a": (expected(S["a"]), 5),
        "b": (expected(S["b"]), 400),
    }


@pytest.mark.parametrize("rank", [0, -1, True])
def test_others_are_refused(rank):
    with pytest.raises(SourceError, match='rank must be an integer of at least 1 or "auto", got'):
        Compression(rank)
