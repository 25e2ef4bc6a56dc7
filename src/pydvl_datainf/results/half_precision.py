"""Rows in half precision that keep their norms.

A row g becomes h = half(g / rms(g)) and the scale ‖g‖/‖h‖. Dividing by the root mean square brings
the entries to where half precision is dense, so that none is flushed to zero, and the scale gives
the stored row exactly the norm of g. (With the norm of g beside a rounded row, the weights
1/(λ + ‖g‖²) of the Sherman-Morrison formula would not fit the rows.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.vectors import rows_at_once


def encode(
    rows: Float[Tensor, "b d"], norms: Float[Tensor, " b"], out: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Puts halves h into `out` (float16, on any device); a zero row has scale 0.

    Args:
        rows: g.
        norms: ‖g‖² of each, in float64.
        out: where to.

    Returns:
        ‖g‖/‖h‖ of each, in the dtype of the rows.
    """
    norms = norms.sqrt()
    rms = norms / rows.shape[1] ** 0.5
    # Not less than what the dtype of the rows tells from zero.
    divisors = torch.where(rms > 0, rms, 1.0).clamp_min(torch.finfo(rows.dtype).tiny)
    k, columns = rows_at_once(rows), divisors.to(rows.dtype)[:, None]
    near = torch.empty_like(rows[:k])  # the same memory for all of them
    parts = zip(torch.split(rows, k), torch.split(columns, k), torch.split(out, k), strict=True)
    lengths = torch.cat([_put_halves(G, c, H, near[: len(G)]) for G, c, H in parts])
    scales = torch.where(rms > 0, norms / torch.where(lengths > 0, lengths, 1.0), 0.0)
    return scales.to(rows.dtype)


def _put_halves(rows: Tensor, divisors: Tensor, out: Tensor, quotients: Tensor) -> Tensor:
    """‖h‖ of each of some rows, whose quotients by their divisors are rounded into `out`."""
    torch.div(rows, divisors, out=quotients)
    # Rounded where they are: what goes to another device takes half as long, and none comes back.
    halves = out if out.device == rows.device else torch.empty_like(quotients, dtype=out.dtype)
    halves.copy_(quotients)
    if halves is not out:
        out.copy_(halves)
    # In the dtype of the rows, which is that of scales: of h² none underflows.
    return quotients.copy_(halves).square_().sum(1).double().sqrt()


def decode(
    halves: Float[Tensor, "b d"], scales: Float[Tensor, " b"], out: Float[Tensor, "b d"]
) -> Float[Tensor, "b d"]:
    """Puts the rows scale · h into `out`; in float64 the products are exact."""
    return out.copy_(halves).mul_(scales.to(out.dtype)[:, None])
