"""What `fit` keeps: how often it reads the rows for an answer, and that it can be kept."""

from collections import OrderedDict

import pytest
import torch

import dense
from pydvl_datainf.gradients.sources import MemoryRows
from pydvl_datainf.influence.fitted import Fitted
from pydvl_datainf.inverse.damping import SquaredNorms
from pydvl_datainf.inverse.methods import DATAINF, EXACT, HESSIAN_FREE

WIDTHS = {"a": 3, "b": 9}
DAMPING = {"a": 0.1, "b": 2.0}
CPU = torch.device("cpu")


def random(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (b, torch.randn(length, d, generator=generator).double()) for b, d in WIDTHS.items()
    )


class Computed:
    """A source that counts its passes, and draws random numbers as a loader may."""

    def __init__(self, rows):
        self.rows, self.n, self.passes = rows, 6, 0

    def chunks(self):
        self.passes += 1
        for place in (slice(4), slice(4, 6)):
            torch.randn(3)
            yield OrderedDict((b, g[place]) for b, g in self.rows.items())


def fitted(source):
    return Fitted(source, None, DAMPING, CPU, {}, {}, has_fixed_order=True, methods={})


@pytest.mark.parametrize(("method", "passes"), [(DATAINF, 1), (EXACT, 1), (HESSIAN_FREE, 0)])
def test_rows_are_computed_once_for_all_blocks(method, passes):
    source = Computed(random(1, 6))
    fitted(source).solve(method.times, random(2, 4))
    assert source.passes == passes


@pytest.mark.parametrize("is_kept", [True, False])
def test_solves_over_the_rows_of_each_block(is_kept):
    G, V = random(1, 6), random(2, 4)
    source = MemoryRows([G], 6) if is_kept else Computed(G)
    found = fitted(source).solve(EXACT.times, V)
    assert list(found) == ["a", "b"]
    for block, v in V.items():
        exact = v @ dense.exact_matrix(G[block], DAMPING[block])
        torch.testing.assert_close(found[block], exact, rtol=1e-9, atol=1e-9)


def test_of_kept_rows_one_block_is_solved_after_the_other():
    """So that of d x d matrices one is there at a time."""
    order = []

    def make(V, λ, n):
        solver = EXACT.times(V, λ, n)
        result, d = solver.result, V.shape[1]
        solver.result = lambda: order.append(f"solved {d}") or result()
        order.append(f"made {d}")
        return solver

    fitted(MemoryRows([random(1, 6)], 6)).solve(make, random(2, 4))
    assert order == ["made 3", "solved 3", "made 9", "solved 9"]


def test_reading_rows_leaves_the_random_state_alone():
    kept = fitted(Computed(random(1, 6)))
    before = torch.random.get_rng_state()
    assert sum(len(rows["a"]) for rows in kept.chunks()) == 6
    kept.solve(DATAINF.times, random(2, 4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_missing_norms_are_summed_when_they_are_needed():
    G = random(1, 6)
    source = Computed(G)
    kept = fitted(source).damped({"a": 0.5, "b": 0.25}, WIDTHS, torch.float64)
    assert (source.passes, kept.norms, kept.damping) == (0, None, {"a": 0.5, "b": 0.25})
    again = kept.damped({"b": 3.0}, WIDTHS, torch.float64)
    assert source.passes == 1
    assert isinstance(again.norms, SquaredNorms)
    assert again.damping == {"a": pytest.approx(dense.automatic_damping(G["a"])), "b": 3.0}
    again.damped({}, WIDTHS, torch.float64)
    assert source.passes == 1
