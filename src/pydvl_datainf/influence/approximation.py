"""How far the inverse of an influence model is from the exact one, on a part of its data."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError, ModelError, SourceError
from pydvl_datainf.influence import BlockwiseInfluence, Inputs
from pydvl_datainf.inverse.agreement import compared_with_exact
from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.vectors import BlockVectors, concatenated, length


def approximation_error(
    influence: BlockwiseInfluence,
    x_test: Inputs,
    y_test: Tensor | None = None,
    *,
    samples: int | None = 512,
) -> ApproximationError:
    """Compares the inverse of a fitted influence model with the exact one on a part of its data.

    Both are taken over the same training samples, evenly spaced among the fitted ones, with the λ
    that was fitted. The error depends on n, since DataInf is exact for n = 1: `samples` and d_l
    belong to the number. It takes n d_l min(n, d_l) multiplications a block.

    Args:
        influence: fitted.
        x_test: test inputs (m, ...), or a mapping that carries its labels.
        y_test: test targets (m, ...); None with a mapping.
        samples: training samples to compare over, at most; None = all.

    Returns:
        The errors, with n, d_l and λ_l beside them.

    Raises:
        ModelError: if it is an ensemble; compare its members.
        DampingError: if the inverse is not damped, so that it approximates nothing.
        SourceError: if `samples` is not positive, or the inverse is not made of the gradients,
            or of compressed ones.

    Examples:
        >>> from pydvl_datainf import DataInfInfluence
        >>> model = torch.nn.Linear(3, 1).double()
        >>> x, y = torch.randn(1, 3).double(), torch.randn(1, 1).double()
        >>> influence = DataInfInfluence(model, torch.nn.functional.mse_loss).fit([(x, y)])
        >>> bool(approximation_error(influence, x, y).score_error < 1e-9)  # exact for n = 1
        True
    """
    _check_comparable(influence, samples)
    vectors = influence.test_gradients_by_block(x_test, y_test)
    n = influence.n_samples or 0
    chosen = evenly_spaced(n, n if samples is None else samples)
    rows = _rows_at(chosen, influence.training_gradients_by_block())
    found = compared_with_exact(influence.inverses, vectors, rows, influence.damping)
    widths = influence.blocks.widths
    return ApproximationError(
        blocks=tuple(found.errors),
        errors=np.array(list(found.errors.values())),
        cosines=np.array(list(found.cosines.values())),
        widths=np.array([widths[block] for block in found.errors]),
        damping=np.array([influence.damping[block] for block in found.errors]),
        n=len(chosen),
        m=length(vectors),
        score_error=found.score_error,
        rank_correlation=found.rank_correlation,
    )


def _check_comparable(influence: BlockwiseInfluence, samples: int | None) -> None:
    """Refuses what approximates no inverse of the gradients, or has none."""
    if samples is not None and (type(samples) is not int or samples < 1):
        raise SourceError(f"samples must be a positive number or None, got {samples!r}.")
    if not isinstance(influence, BlockwiseInfluence):
        raise ModelError(
            f"A {type(influence).__name__} has no inverse to compare. Compare a single influence "
            "model, such as one of the members of an ensemble."
        )
    if not influence.inverse.is_damped:
        raise DampingError(
            "Plain products of gradients have no damping, so they approximate no damped inverse. "
            "Compare HessianFreeInfluence(scaled=True)."
        )
    if influence.sample_rows.curvature is not None:
        raise SourceError(
            "Inverses are compared over the training gradients, and this one is made of other "
            'rows. Compare one with curvature="empirical".'
        )
    if influence.rows_kept == "compressed":
        raise SourceError(
            "Inverses are compared over whole rows, and these are compressed. Compare a model with "
            'rows="memory".'
        )


def evenly_spaced(n: int, samples: int) -> npt.NDArray[np.int64]:
    """Positions of at most `samples` of n samples, evenly spaced, each once."""
    return np.arange(min(samples, n)) * n // max(1, min(samples, n))


def _rows_at(positions: npt.NDArray[np.int64], chunks: Iterable[BlockVectors]) -> BlockVectors:
    found, done = [], 0
    for rows in chunks:
        stop = done + length(rows)
        here = torch.from_numpy(positions[(positions >= done) & (positions < stop)] - done)
        if len(here):
            found.append(_taken(rows, here))
        done = stop
    return concatenated(found)


def _taken(rows: Mapping[str, Tensor], here: Tensor) -> BlockVectors:
    return OrderedDict((block, G[here.to(G.device)]) for block, G in rows.items())
