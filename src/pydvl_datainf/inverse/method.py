"""STUB until the method branch is merged."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from pydvl_datainf.errors import DampingError, SourceError
from pydvl_datainf.inverse import sherman_morrison as sm
from pydvl_datainf.inverse import woodbury
from pydvl_datainf.inverse.damping import automatic_damping, check_representable

Method = Any
Solver = Any


class _Identity:
    wants_rows = False

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class _Sum:
    def __init__(self, V, λ, n, forms):
        self.V, self.λ, self.n, self.forms, self.wants_rows = V.double(), λ, n, forms, True
        self.sums = V.new_zeros(len(V), dtype=torch.float64) if forms else torch.zeros_like(self.V)

    def add(self, G):
        if self.forms:
            self.sums += sm.quadratic_correction(G, self.V, self.λ)
        else:
            sm.add_correction(self.sums, G, self.V, self.λ)

    def end_pass(self):
        self.wants_rows = False

    def result(self):
        f = sm.quadratic_form if self.forms else sm.transformed
        return f(self.V, self.sums, self.n, self.λ)


class _Exact:
    def __init__(self, V, λ, n, f):
        self.V, self.λ, self.n, self.f, self.wants_rows, self.G = V, λ, n, f, True, []

    def add(self, G):
        self.G.append(G)

    def end_pass(self):
        self.wants_rows = False

    def result(self):
        return self.f(torch.cat(self.G), self.V, self.λ)


@dataclass(frozen=True)
class DataInf:
    name: str = "DataInf"
    formula: str = "mean over training samples of (g gᵀ + λ I)⁻¹, block by block"
    is_damped: bool = True
    passes: int = 1
    joins: bool = True

    @property
    def is_approximate(self):
        return self.is_damped

    def times(self, V, λ, n):
        return _Sum(V, λ, n, False)

    def forms(self, V, λ, n):
        return _Sum(V, λ, n, True)

    def bytes(self, n, m, d):
        return m * d * 8

    def flops(self, n, m, d):
        return 4 * n * m * d

    def precision(self, dtype):
        return "float64"

    def check_rows(self, kept):
        pass


@dataclass(frozen=True)
class Exact(DataInf):
    name: str = "exact"
    formula: str = "(mean over training samples of g gᵀ + λ I)⁻¹, block by block"
    joins: bool = False
    is_approximate = False

    def times(self, V, λ, n):
        return _Exact(V, λ, n, woodbury.solved)

    def forms(self, V, λ, n):
        return _Exact(V, λ, n, woodbury.quadratic_form)

    def flops(self, n, m, d):
        k = min(n, d)
        return 2 * n * d * k + k**3 / 3 + 2 * m * k * (k if d <= n else k + 2 * d)

    def bytes(self, n, m, d):
        return 2 * n * d * 8 + 16 * min(n, d) ** 2 + m * d * 8

    def check_rows(self, kept):
        if kept == "recompute":
            raise SourceError("The exact inverse needs the gradients of all samples together")


@dataclass(frozen=True)
class Scaled(DataInf):
    name: str = "scaled Hessian-free"
    formula: str = "I/λ, block by block"
    passes: int = 0

    def times(self, V, λ, n):
        return _Identity(V / λ)

    def forms(self, V, λ, n):
        return _Identity(V.square().sum(1) / λ)

    def bytes(self, n, m, d):
        return 0

    def flops(self, n, m, d):
        return 0

    def precision(self, dtype):
        return dtype


@dataclass(frozen=True)
class Plain(Scaled):
    name: str = "Hessian-free"
    formula: str = "the identity, so that influences are products of gradients"
    is_damped: bool = False


METHODS = {m.name: m for m in (DataInf(), Exact(), Plain(), Scaled())}


def solve(make, vectors, passes, n, damping):
    solvers = {b: make(V, damping[b], n) for b, V in vectors.items()}
    while any(s.wants_rows for s in solvers.values()):
        for rows in passes():
            for b, s in solvers.items():
                s.add(rows[b])
        for s in solvers.values():
            s.end_pass()
    found = OrderedDict()
    for b, s in solvers.items():
        try:
            found[b] = s.result()
        except DampingError as error:
            raise DampingError(f"Block '{b}': {error}") from error
    return found


def resolve_damping(given, norms, widths, dtype):
    damping = dict(given)
    wanted = [b for b in widths if b not in damping]
    if wanted:
        damping |= automatic_damping(norms, widths, wanted, dtype)
    check_representable(damping, dtype)
    return {b: damping[b] for b in widths}
