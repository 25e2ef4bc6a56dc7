"""What compression changes where all training samples are copies: there is no order to lose."""

import numpy as np
import pytest
import torch

import method_runs
from compressed_runs import run
from method_runs import datainf, exact
from pydvl_datainf.inverse.agreement import agreement, are_copies
from small_runs import samples

N = 12


def copies(seed=1):
    x, y = samples(1, seed)
    return method_runs.loader((x.expand(N, -1).clone(), y.expand(N).clone()), 5)


@pytest.mark.parametrize("build", [datainf, exact])
def test_copies_have_no_order_that_could_be_lost(tmp_path, build):
    found = run(tmp_path / "run.zarr", build, train=copies(), rank=3, tile=None).compression_error
    assert found.rank_correlation == 1
    assert found.score_error < 1e-6  # one direction, which the basis has


def test_without_that_it_is_noise():
    """Negative control, and a sample that is no copy."""
    generator = torch.Generator().manual_seed(0)
    T = torch.ones(5, N, dtype=torch.float64)
    S, T = (T + 1e-15 * torch.randint(-4, 4, T.shape, generator=generator) for _ in range(2))
    assert abs(agreement(S, T, is_ordered=True)[1]) < 0.9
    assert agreement(S, T, is_ordered=False) == (pytest.approx(0, abs=1e-14), 1.0)


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_copies_are_known_up_to_rounding(dtype, noise):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 50, generator=generator, dtype=dtype).expand(4, -1).clone()
    assert are_copies(rows)
    assert are_copies(rows[:1])
    assert are_copies(0 * rows)
    noisy = rows * (1 + noise * torch.randn(4, 50, generator=generator, dtype=dtype))
    assert not torch.equal(noisy, rows)
    assert are_copies(noisy)
    rows[2] *= 1.01
    assert not are_copies(rows)
    assert not are_copies(torch.from_numpy(np.eye(2)).to(dtype))
