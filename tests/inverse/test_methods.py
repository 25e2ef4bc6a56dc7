"""The methods: each against the contract of all, and the registry."""

from collections import OrderedDict

import pytest
import torch

import dense
from method_contract import JoinedContract, MethodContract, random, solved
from pydvl_datainf import DampingError, SourceError
from pydvl_datainf.inverse.method import Solver, solve
from pydvl_datainf.inverse.methods import (
    DATAINF,
    EKFAC,
    EXACT,
    HESSIAN_FREE,
    LISSA,
    METHODS,
    SCALED_HESSIAN_FREE,
)


class TestDataInf(JoinedContract):
    method = DATAINF

    def matrix(self, G, λ):
        return dense.datainf_matrix(G, λ)


class TestExact(MethodContract):
    method = EXACT
    takes_recomputed_rows = False

    def matrix(self, G, λ):
        return dense.exact_matrix(G, λ)

    def test_rows_are_refused_with_a_remedy(self):
        with pytest.raises(SourceError, match=r'all samples together.*Use rows="memory"'):
            EXACT.check_rows("recompute")

    @pytest.mark.parametrize("d", [2, 5])
    def test_a_block_that_cannot_be_solved_is_named(self, d):
        G, V = torch.ones(3, d).double(), random(1, 2, d)
        vectors, rows = OrderedDict(first=V), OrderedDict(first=G)
        with pytest.raises(DampingError, match="Block 'first': The damping is lost"):
            solve(EXACT.times, vectors, lambda: [rows], 3, {"first": 1e-20})


class TestHessianFree(MethodContract):
    method = HESSIAN_FREE

    def matrix(self, G, λ):
        return torch.eye(G.shape[1]).double()


class TestScaledHessianFree(MethodContract):
    method = SCALED_HESSIAN_FREE

    def matrix(self, G, λ):
        return dense.scaled_identity(G, λ)


@pytest.mark.parametrize("matrix", [dense.exact_matrix, dense.scaled_identity])
def test_the_oracles_tell_methods_apart(matrix):
    """Negative control: DataInf fails the comparison with another method's oracle."""
    G, V = random(1, 5, 3), random(2, 4, 3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            solved(DATAINF.times, G, V, 0.5)[0], V @ matrix(G, 0.5), rtol=1e-2, atol=1e-2
        )


def test_methods_by_name():
    registered = [DATAINF, EXACT, EKFAC, HESSIAN_FREE, SCALED_HESSIAN_FREE, LISSA]
    names = ["DataInf", "exact", "EK-FAC", "Hessian-free", "scaled Hessian-free", "LiSSA"]
    assert list(METHODS) == names
    assert list(METHODS.values()) == registered
    told = {
        m.name: (m.is_damped, m.is_approximate, m.passes, m.joins, m.precision("float32"))
        for m in METHODS.values()
    }
    assert told == {
        "DataInf": (True, True, 1, True, "float64"),
        "exact": (True, False, 1, False, "float64"),
        "EK-FAC": (True, True, 1, False, "float64"),
        "Hessian-free": (False, False, 0, True, "float32"),
        "scaled Hessian-free": (True, True, 0, True, "float32"),
        "LiSSA": (True, True, 120, False, "float64"),
    }


def test_methods_differ():
    assert len(set(METHODS.values())) == len(METHODS)


class Counting(Solver):
    """Products with the mean row, one for each pass; two passes where rows have three entries."""

    def __init__(self, V, λ, n):
        self.V, self.n, self.left = V, n, 2 if V.shape[1] == 3 else 1
        self.means, self.sums, self.fed = [], torch.zeros(V.shape[1]).double(), 0

    @property
    def wants_rows(self):
        return self.left > 0

    def add(self, G):
        self.sums = self.sums + G.sum(0)
        self.fed += len(G)

    def end_pass(self):
        self.means.append(self.sums / self.n)
        self.sums, self.left = torch.zeros_like(self.sums), self.left - 1

    def result(self):
        return torch.stack([self.V @ mean for mean in self.means])


def test_solve_makes_as_many_passes_as_any_block_wants_and_feeds_only_those():
    """Blocks of width 3 want two passes, others one."""
    rows = OrderedDict((b, random(i, 5, d)) for i, (b, d) in enumerate({"a": 3, "b": 2}.items()))
    vectors, passes, made = OrderedDict((b, g[:2]) for b, g in rows.items()), [], {}

    def make(V, λ, n):
        return made.setdefault((V.shape[1], λ, n), Counting(V, λ, n))

    found = solve(make, vectors, lambda: passes.append(1) or [rows], 5, {"a": 0.1, "b": 0.2})
    assert len(passes) == 2
    assert {key: solver.fed for key, solver in made.items()} == {(3, 0.1, 5): 10, (2, 0.2, 5): 5}
    for block, times in (("a", 2), ("b", 1)):
        expected = vectors[block] @ rows[block].mean(0)
        torch.testing.assert_close(found[block], expected.expand(times, 2))
