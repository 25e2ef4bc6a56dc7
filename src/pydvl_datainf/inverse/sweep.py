"""One method under several λ at once, over the same passes over the rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pydvl_datainf.inverse.method import Make, OnePass, Solver


class Sweep(Solver):
    """Answers under several λ, one below the other.

    What solvers add up is added up once where it does not depend on λ, such as Gᵀ G of the exact
    inverse: a Cholesky factor for each λ then takes less than the eigenvectors that would serve all
    of them, up to some dozens.

    Args:
        make: makes a solver.
        V: vectors as rows, (m, d).
        dampings: the λ.
        n: the number of training rows.
    """

    sums: Tensor  # not there: they are those of its solvers

    def __init__(self, make: Make, V: Tensor, dampings: Sequence[float], n: int):
        self.dampings = dampings
        first = make(V, dampings[0], n)
        self.shared = first if isinstance(first, OnePass) and first.is_shared else None
        self.fed = [first] if self.shared else [first, *(make(V, λ, n) for λ in dampings[1:])]

    @property
    def wants_rows(self) -> bool:
        """Whether any of them needs another pass."""
        return any(solver.wants_rows for solver in self.fed)

    def add(self, G: Tensor) -> None:
        """Adds a chunk of rows (b, d) to those that need it."""
        for solver in self.fed:
            if solver.wants_rows:
                solver.add(G)

    def end_pass(self) -> None:
        """Ends a pass of those that needed it."""
        for solver in [solver for solver in self.fed if solver.wants_rows]:
            solver.end_pass()

    def result(self) -> Tensor:
        """The answers under each λ in turn, (number of λ · m, …)."""
        if self.shared is None:
            return torch.cat([solver.result() for solver in self.fed])
        return torch.cat([self.shared.under(λ).result() for λ in self.dampings])

    @property
    def residuals(self) -> Tensor | None:  # type: ignore[override]
        """Those of all answers, where they are iterated for."""
        found = [solver.residuals for solver in self.fed if solver.residuals is not None]
        return torch.cat(found) if found else None


def at_scales(make: Make, scales: Sequence[float]) -> Make:
    """Makes solvers whose answers are those under multiples of λ, one below the other."""
    return lambda V, λ, n: Sweep(make, V, [scale * λ for scale in scales], n)
