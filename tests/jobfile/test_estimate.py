"""What a run takes: of 100 training samples, 10 test samples, blocks of 8 and 200 parameters."""

import pytest

from pydvl_datainf.inverse import methods
from pydvl_datainf.jobfile.estimate import gradients, operations
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.runner.worker_inputs import Description

DATAINF, EXACT, HESSIAN_FREE, SCALED_HESSIAN_FREE = (
    methods.METHODS[name] for name in ("DataInf", "exact", "Hessian-free", "scaled Hessian-free")
)
N, M, NARROW, WIDE = 100, 10, 8, 200
SCORES = 2 * N * M * (NARROW + WIDE)


def planned(rows="zarr", groups=1):
    sizes = {"n": N, "m": M, "n_parameters": NARROW + WIDE, "train_tile": 7, "step": 7, "part": M}
    cut = {"test_tile": M // groups, "group_tiles": 1, "span_tiles": 4, "columns": 9}
    held = {"pieces": ((1, NARROW), (1, WIDE)), "chunk": 7, "held": 2**20}
    plan = Plan(**sizes, **cut, **held, self_tiles=1, rows=rows)
    assert len(plan.groups) == groups
    return plan


def described(inverse, damping=()):
    return Description(
        members={"narrow": ("a",), "wide": ("b",)},
        widths={"narrow": NARROW, "wide": WIDE},
        dtype="float32",
        fixed_damping=dict.fromkeys(damping, 1.0),
        n_samples=None,
        batch_size=None,
        objective="a loss",
        model={},
        method=inverse,
    )


@pytest.mark.parametrize(
    ("inverse", "expected"),
    [(HESSIAN_FREE, SCORES), (SCALED_HESSIAN_FREE, SCORES), (DATAINF, 3 * SCORES)],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_operations(inverse, expected, groups):
    """G v and Gᵀ(w ⊙ G v) take as many as the scores do."""
    assert operations(planned(groups=groups), described(inverse)) == expected


@pytest.mark.parametrize("groups", [1, 2])
def test_operations_of_the_exact_inverse(groups):
    """Each triangle of k x k numbers takes k² operations a vector, and is used twice."""
    narrow_factor = 2 * N * NARROW**2 + NARROW**3 / 3  # GᵀG and its factor, 8 x 8
    wide_factor = 2 * N**2 * WIDE + N**3 / 3  # GGᵀ and its factor, 100 x 100
    narrow_solution = 2 * M * NARROW**2
    wide_solution = 2 * M * N**2 + 2 * (2 * M * N * WIDE)  # and G v, and Gᵀ of the solution
    expected = SCORES + narrow_solution + wide_solution + groups * (narrow_factor + wide_factor)
    found = operations(planned(groups=groups), described(EXACT))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("inverse", "rows", "damping", "expected"),
    [
        (DATAINF, "recompute", (), 5),
        (DATAINF, "recompute", ("narrow",), 5),
        (DATAINF, "recompute", ("narrow", "wide"), 4),
        (SCALED_HESSIAN_FREE, "recompute", (), 3),
        (HESSIAN_FREE, "recompute", ("narrow", "wide"), 2),
        (DATAINF, "zarr", (), 1),
        (EXACT, "zarr", (), 1),
        (HESSIAN_FREE, "memory", ("narrow", "wide"), 1),
    ],
)
def test_gradients_in_two_groups_of_queries(inverse, rows, damping, expected):
    assert gradients(planned(rows, 2), described(inverse, damping)) == (expected, 1)
