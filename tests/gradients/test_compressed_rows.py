"""Which rows are computed for compressed ones, and what is kept of them."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import gradient_engine
from pydvl_datainf.gradients.compressed import joined_rows, read_compressed
from pydvl_datainf.gradients.sources import Reader
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.coordinates import lifted, projected
from pydvl_datainf.inverse.directions import leading_directions
from pydvl_datainf.objectives import as_objective


class Counting:
    """An engine that tells how many rows it computed."""

    def __init__(self, engine):
        self.engine, self.count = engine, 0

    def rows(self, batch):
        self.count += len(batch[0])
        return self.engine.rows(batch)


def counted(n, compression, shuffle=False, size=4):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = torch.randn(n, 3).double(), torch.randn(n, 2).double()
    loss = nn.functional.mse_loss
    engine = gradient_engine("auto", model, as_objective(loss), Blocks.from_model(model, "module"))
    counting = Counting(engine)
    loader = DataLoader(TensorDataset(*data), size, shuffle=shuffle)
    source, norms = read_compressed(Reader(loader, counting, torch.device("cpu")), compression)
    rows = {
        block: dense.gradients(model, loss, data, [f"{block}.weight", f"{block}.bias"])
        for block in ("0", "2")
    }
    return source, norms, counting.count, rows


@pytest.mark.parametrize(("n", "sample"), [(9, 3), (9, 9), (9, 50), (1, 5), (8, 1)])
def test_no_row_is_computed_twice(n, sample):
    source, norms, count, rows = counted(n, Compression(3, sample))
    assert count == n + 1  # the first sample is tried out
    assert source.n == norms.n == n
    for block, g in rows.items():
        whole = g.square().sum(1)
        outside = torch.cat([s[block] for s in source.outside])
        kept = torch.cat([c[block] for c in source.kept])
        assert kept.shape == (n, min(3, sample, n))
        torch.testing.assert_close(kept.square().sum(1) + outside, whole, rtol=1e-12, atol=1e-15)
        assert norms.sums[block] == pytest.approx(float(whole.sum()), rel=1e-12)


def test_without_fixed_order_rows_of_the_sample_are_computed_again():
    *_, count, _ = counted(9, Compression(3, 5), shuffle=True)
    assert count == 1 + 5 + 9


@pytest.mark.parametrize("chosen", [[], [5], [5, 7], [6, 7, 8], [5, 6, 7, 8], [0, 4, 9, 12]])
def test_known_rows_take_their_places(chosen):
    batch = torch.arange(5.0, 9.0), torch.zeros(4)
    asked = []

    def compute(part):
        asked.extend(part[0].tolist())
        return OrderedDict(a=part[0][:, None] * 10)

    def known(at):
        return OrderedDict(a=torch.tensor(chosen[at], dtype=torch.float32)[:, None] * 10)

    rows = joined_rows(batch, 5, np.array(chosen, dtype=np.int64), known, compute)
    assert rows["a"].flatten().tolist() == [50, 60, 70, 80]
    assert asked == [float(p) for p in range(5, 9) if p not in chosen]


# Bases


@pytest.mark.parametrize(("b", "d"), [(7, 30), (30, 7), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("r", [1, 3, 100])
def test_directions_are_the_leading_singular_vectors(b, d, r):
    S = torch.randn(b, d, generator=torch.Generator().manual_seed(b), dtype=torch.float64)
    B = leading_directions(S, r)
    k = min(r, b, d)
    expected = np.linalg.svd(S.numpy(), full_matrices=False)[2][:k]
    torch.testing.assert_close(B @ B.T, torch.eye(k).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        B.T @ B, torch.from_numpy(expected.T @ expected), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("rows", [torch.zeros(4, 9), torch.ones(4, 9), torch.eye(9)[[0, 0, 2]]])
def test_directions_stay_orthonormal_where_rows_have_fewer(rows):
    B = leading_directions(rows.double() * 1e-20, 3)
    torch.testing.assert_close(B @ B.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.double() @ B.T @ B, rows.double(), rtol=1e-9, atol=1e-12)


def test_blocks_without_a_basis_stay_as_they_are():
    v = OrderedDict(a=torch.randn(2, 3), b=torch.randn(2, 5))
    bases = OrderedDict(b=torch.eye(5)[:2])
    c = projected(v, bases)
    assert c["a"] is v["a"]
    assert torch.equal(c["b"], v["b"][:, :2])
    assert torch.equal(lifted(c, bases)["b"], v["b"] * torch.tensor([1, 1, 0, 0, 0]))


@pytest.mark.parametrize(
    ("n", "expected"), [(1, {"a": 5, "b": 1}), (7, {"a": 5, "b": 7}), (99, {"a": 5, "b": 10})]
)
def test_widths_follow_from_rank_sample_and_n(n, expected):
    assert Compression(10, 30).widths({"a": 5, "b": 40}, n) == expected
    assert len(Compression(10, 30).positions(n)) == min(n, 30)


def test_the_sample_is_twice_the_rank():
    assert Compression(10).sample_size(100) == 20
    assert Compression().sample_size(10**6) == 512
