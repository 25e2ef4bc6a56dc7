"""What a method is: an inverse of each block, whose solvers are fed the training rows in passes.

A solver does not know where rows come from: from memory, computed again, read from a disk, for one
block or for all of them at a time. The rows fed need not be those that are scored, as under the
true Gauss-Newton matrix, and a solver of another method may be fed further sums over the training
samples before its first pass, as curvature from layers' inputs and outputs needs them.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError, SourceError
from pydvl_datainf.vectors import BlockVectors


@runtime_checkable
class Solver(Protocol):
    """One block's inverse times some vectors; is fed the block's training rows in passes."""

    sums: Tensor
    """What was added up so far, if the method's solvers can be joined: the sums of solvers that
    were fed parts of the rows add up to those of one that was fed all. Shaped like V for `times`.
    """

    residuals: Tensor | None = None
    """‖(H + λ I) x − v‖/‖v‖ of each answer x, (m,), where answers are iterated for."""

    @property
    def wants_rows(self) -> bool:
        """Whether another pass over the n training rows is needed."""
        ...

    def add(self, G: Tensor) -> None:
        """Takes some rows (b, d) of any floating dtype; a pass may be cut in any way."""
        ...

    def end_pass(self) -> None:
        """Tells that all n rows were added once more."""
        ...

    def result(self) -> Tensor:
        """Computes the answer, after the last pass; in float64, see `Method.precision`."""
        ...


@runtime_checkable
class Method(Protocol):
    """What takes the place of (H_l + λ_l I)⁻¹ in each block l.

    Without state, and equal by kind and settings.
    """

    @property
    def name(self) -> str:
        """As in results and their fingerprints."""
        ...

    @property
    def formula(self) -> str:
        """In words and letters."""
        ...

    @property
    def settings(self) -> Mapping[str, int | float]:
        """Those that change its answers, by the names of its arguments, as JSON holds them."""
        return {}

    @property
    def is_damped(self) -> bool:
        """Whether λ takes part."""
        ...

    @property
    def passes(self) -> int:
        """How often solvers want the training rows."""
        ...

    @property
    def joins(self) -> bool:
        """Whether solvers fed with parts of the rows can be joined by adding their `sums`."""
        ...

    @property
    def is_iterated(self) -> bool:
        """Whether solvers have `residuals`."""
        return False

    @property
    def is_approximate(self) -> bool:
        """Whether it stands for the exact damped inverse."""
        return self.is_damped

    def times(self, V: Tensor, λ: float, n: int) -> Solver:
        """A solver for the inverse times each row of V (m, d), over n training rows: (m, d)."""
        ...

    def forms(self, V: Tensor, λ: float, n: int) -> Solver:
        """A solver for vᵀ (inverse) v of each row v of V (m, d), over n training rows: (m,)."""
        ...

    def weighed(self, C: Tensor, outside: Tensor, λ: float) -> Tensor:
        """What solvers are fed in place of compressed rows, see `inverse.compression`.

        Args:
            C: coordinates of rows, (b, r).
            outside: by how much ‖g‖² of each row is more than ‖c‖², (b,), in float64.
            λ: the damping.

        Returns:
            (b, r); the coordinates themselves where norms of single rows take no part.
        """
        return C

    def bytes(self, n: int, m: int, d: int) -> int:
        """The most that a solver of one block takes, beside V, the result, and what is being added.

        While rows are added there is also their chunk (b, d) in float64, and its products (m, b).
        """
        ...

    def flops(self, n: int, m: int, d: int) -> float:
        """Operations of `times` in one block, two for each multiplication and addition."""
        ...

    def precision(self, dtype: str) -> str:
        """Of results, and of what is added up for them: float64 where differences cancel.

        Args:
            dtype: of the rows, by NumPy's name.

        Returns:
            A dtype, by NumPy's name.
        """
        return "float64"

    @property
    def refused(self) -> Mapping[str, str]:
        """For ways to keep training rows in which they cannot serve: why, and what to do."""
        return {}

    def check_rows(self, kept: str) -> None:
        """Checks that training rows can serve.

        Args:
            kept: where they are: "memory", "zarr", "recompute", "compressed" or "auto".

        Raises:
            SourceError: if rows that are kept so cannot.
        """
        if kept in self.refused:
            raise SourceError(self.refused[kept])

    def to(self, device: torch.device) -> "Method":
        """The same on another device, with what is known of a block."""
        return self

    def warn_of(self, residual: float) -> None:
        """Warns where answers are further from solved than was asked for.

        Args:
            residual: the largest of the `Solver.residuals`.
        """
        return


Make: TypeAlias = Callable[[Tensor, float, int], Solver]
"""`Method.times` or `Method.forms`."""

Makes: TypeAlias = Make | Mapping[str, Make]
"""One for all blocks, or one for each."""


class OnePass(Solver):
    """What solvers that read the rows once have in common.

    Args:
        V: vectors as rows, (m, d).
        λ: the damping.
        n: the number of training rows.
    """

    wants_rows = True
    is_shared = False
    """Whether what is added up does not depend on λ."""

    def __init__(self, V: Tensor, λ: float, n: int):
        self.V, self.λ, self.n = V.double(), λ, n

    def under(self, λ: float) -> "OnePass":
        """The same, as it was fed, under another λ, where that `is_shared`."""
        twin = copy(self)
        twin.λ = λ
        return twin

    def end_pass(self) -> None:
        """Ends the only pass."""
        self.wants_rows = False


def solve(
    make: Makes,
    vectors: Mapping[str, Tensor],
    passes: Callable[[], Iterable[BlockVectors]],
    n: int,
    damping: Mapping[str, float],
    residuals: dict[str, Tensor] | None = None,
) -> BlockVectors:
    """Solves for vectors of every block, with as many passes over the training rows as it takes.

    Args:
        make: `times` or `forms` of a method, or of one for each block.
        vectors: for each block vectors v as rows, (m, d_l).
        passes: starts a pass over the rows of all n training samples, in pieces, which may hold
            further blocks; is not called if no solver wants rows.
        n: the number of training samples.
        damping: λ of each block.
        residuals: is given those of blocks whose answers are iterated for.

    Returns:
        For each block of `vectors` the inverse times each of them, (m, d_l), or one number for
        each, (m,).

    Raises:
        DampingError: if a block cannot be solved; names it.
    """
    makes = make if isinstance(make, Mapping) else dict.fromkeys(vectors, make)
    solvers = {block: makes[block](V, damping[block], n) for block, V in vectors.items()}
    while wanting := [block for block, solver in solvers.items() if solver.wants_rows]:
        for rows in passes():
            for block in wanting:
                solvers[block].add(rows[block])
        for block in wanting:
            solvers[block].end_pass()
    results: BlockVectors = OrderedDict()
    for block in vectors:
        try:
            solver = solvers.pop(block)
            results[block] = solver.result()
        except DampingError as error:
            raise DampingError(f"Block '{block}': {error}") from error
        if residuals is not None and solver.residuals is not None:
            residuals[block] = solver.residuals
        del solver  # and frees what it held
    return results


def float64_bytes(*shapes: tuple[int, ...]) -> int:
    """What matrices of these shapes take in float64."""
    return 8 * sum(torch.Size(shape).numel() for shape in shapes)
