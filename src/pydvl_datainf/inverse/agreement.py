"""How far an approximate inverse is from the exact one."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from pydvl_datainf.inverse.coordinates import projected, remainders
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.method import Method, solve
from pydvl_datainf.inverse.woodbury import Exact
from pydvl_datainf.vectors import BlockVectors, length, product, products, total


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an inverse makes of some vectors, beside what the exact one makes of them.

    Args:
        errors: ‖A − E‖/‖E‖ for each block, in Frobenius norm.
        cosines: ⟨A, E⟩/(‖A‖‖E‖) for each block: 1 where A is E up to a factor.
        score_error: ‖S − T‖/‖T‖ for the influences of both.
        rank_correlation: Spearman's, of a test sample's influences in S and T, averaged over test
            samples; None where it is not defined, as for n = 1.
    """

    errors: Mapping[str, float]
    cosines: Mapping[str, float]
    score_error: float
    rank_correlation: float | None


def compared_with_exact(
    method: Method | Mapping[str, Method],
    vectors: BlockVectors,
    rows: BlockVectors,
    damping: Mapping[str, float],
    fed: Mapping[str, Tensor] | None = None,
) -> Comparison:
    """Sets a method beside the exact one, both taken over the same n rows G.

    With the transforms of the vectors as rows of A (approximate) and E (exact), their influences
    are S = A Gᵀ and T = E Gᵀ, summed over blocks.

    Args:
        method: the approximate one, or one for each block.
        vectors: for each block vectors as rows, (m, d_l).
        rows: for each block gradients of n training samples as rows, (n, d_l).
        damping: λ of each block.
        fed: what the approximate one is made of in place of the rows, as compressed ones want it.

    Returns:
        Errors, which are 0, and cosines, which are 1, where both transforms are zero.
    """
    n = length(rows)
    methods = method if isinstance(method, Mapping) else dict.fromkeys(vectors, method)
    times = {block: one.times for block, one in methods.items()}
    approximate = solve(
        times, vectors, lambda: [rows if fed is None else OrderedDict(fed)], n, damping
    )
    exact = solve(Exact().times, vectors, lambda: [rows], n, damping)
    S, T = total(products(approximate, rows)), total(products(exact, rows))
    return Comparison(
        errors={block: _error(approximate[block], E) for block, E in exact.items()},
        cosines={block: _cosine(approximate[block], E) for block, E in exact.items()},
        score_error=_error(S, T),
        rank_correlation=_rank_correlation(S, T),
    )


def influences_of_both(
    method: Method,
    V: Tensor,
    G: Tensor,
    B: Tensor | None,
    λ: float,
    checked: Tensor,
    squares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Influences from compressed and from whole rows of a block, by one method.

    Args:
        method: whose inverse is taken over all n rows, whole or compressed.
        V: vectors as rows, (m, d).
        G: whole rows, (n, d), or small ones behind side bases.
        B: the basis, (r, d); None = the block is kept whole.
        λ: the damping.
        checked: of which of the rows the influences are, (n,), true or false.
        squares: ‖g‖² of the whole rows, (n,), in float64, where G are small ones.

    Returns:
        Two matrices (m, k), for k rows that are checked.
    """
    bases = {} if B is None else {"": B}
    rows = OrderedDict({"": G})
    C, damping = projected(rows, bases), {"": λ}
    norms = {"": squared_norms(G) if squares is None else squares}
    fed = OrderedDict({"": method.weighed(C[""], remainders(norms, C)[""], λ)})
    if squares is not None:
        rows = OrderedDict({"": method.weighed(G, remainders(norms, rows)[""], λ)})
    whole = solve(method.times, {"": V}, lambda: [rows], len(G), damping)
    less = solve(method.times, projected({"": V}, bases), lambda: [fed], len(G), damping)
    return product(less[""], C[""][checked]), product(whole[""], G[checked])


def agreement(S: Tensor, T: Tensor, *, is_ordered: bool) -> tuple[float, float]:
    """‖S − T‖/‖T‖ of influences, and their rank correlation.

    Args:
        S: influences of k samples, (m, k).
        T: others.
        is_ordered: whether samples differ, so that there is an order of their influences.

    Returns:
        Two numbers; the second is 1 where there is no order that could be lost.
    """
    correlation = _rank_correlation(S, T) if is_ordered else None
    return _error(S, T), 1.0 if correlation is None else correlation


def are_copies(rows: Tensor) -> bool:
    """Whether rows (k, d) are one and the same up to rounding: what orders them is noise then."""
    largest = _norm(rows[0]) * float(torch.finfo(rows.dtype).eps) ** 0.5
    return bool((torch.linalg.vector_norm(rows - rows[0], dim=1) <= largest).all())


def _error(A: Tensor, E: Tensor) -> float:
    error, size = _norm(A.double() - E.double()), _norm(E)
    return error / size if size else 0.0


def _cosine(A: Tensor, E: Tensor) -> float:
    sizes = _norm(A) * _norm(E)
    return min(1.0, (A.double() * E.double()).sum().item() / sizes) if sizes else 1.0  # rounding


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _rank_correlation(S: Tensor, T: Tensor) -> float | None:
    ranks = [rankdata(scores.cpu().numpy(), axis=1) for scores in (S, T)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    defined = sizes > 0
    if not defined.any():
        return None
    return min(1.0, float(((a * b).sum(1)[defined] / sizes[defined]).mean()))  # but for rounding
