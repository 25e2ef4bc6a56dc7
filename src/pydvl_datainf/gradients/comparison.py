"""Comparing what capture computes with plain autograd, and with the losses of other batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pydvl_datainf.batches import reversed_batch, slice_batch
from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients.calls import Call, Rows
from pydvl_datainf.gradients.checks import check_independent, check_steady
from pydvl_datainf.gradients.joints import Joint, uneven
from pydvl_datainf.gradients.passes import OUTSIDE, Inputs, Pass, Passes, Use, backward
from pydvl_datainf.gradients.places import BeginAgainError
from pydvl_datainf.gradients.recording import row_counts

_UNEVEN = "the number of their rows does not follow from that of the samples"
_NOT_THE_SUM = "their rows do not add up to the gradient of the batch"
_NOT_ALONE = "their rows are not those of a sample alone"
_MISPLACED = "their rows go where data decides"


def compared(passes: Passes, inputs: Inputs) -> tuple[Tensor, Rows]:
    """Losses and rows of a batch with new steps, compared with plain autograd.

    Args:
        passes: through the watched model.
        inputs: the batch.

    Returns:
        The losses, detached, and the rows of all parameters that capture explains.
    """
    done, checked, give_up = _steady(passes, inputs), inputs.checked, passes.places.give_up
    give_up_misplaced(passes, done)
    # Random weights, from a generator of our own: a plain sum is blind to swapped samples.
    random = torch.randn(inputs.length, generator=torch.Generator().manual_seed(checked.checks))
    weights = random.to(done.losses.device, inputs.dtype)
    truth = _weighted(done, weights)
    called = {name for use in done.uses for name in use.names}
    give_up(truth.keys() - called - passes.places.unexplained, OUTSIDE)
    rows = passes.rows(done)
    sums = {name: torch.einsum("b,b...->...", weights.to(r.device), r) for name, r in rows.items()}
    give_up(inputs.tolerance.unequal(sums, truth), _NOT_THE_SUM)
    for i in (0, inputs.length - 1):
        give_up(_unlike_alone(passes, done, rows, i), _NOT_ALONE)
    checked.steps |= passes.path(done)
    checked.note(inputs.length)
    return done.losses.detach(), passes.places.explained(rows)


def _weighted(done: Pass, weights: Tensor) -> Rows:
    """The gradient of a combination of the losses, for parameters on which they depend."""
    parameters = done.inputs.parameters
    total = (weights * done.losses).sum()
    grads = backward(total, list(parameters.values()), retain_graph=True)
    pairs = zip(parameters, grads, strict=True)
    return {name: done.inputs.dense(g) for name, g in pairs if g is not None}


def check_any_sample(passes: Passes, done: Pass, rows: Rows) -> None:
    """Compares the row of a sample drawn at random with plain autograd.

    Args:
        passes: through the watched model.
        done: one over a batch whose steps were compared before.
        rows: that follow from it.

    Raises:
        ModelError: if they differ.
    """
    generator = torch.Generator().manual_seed(done.inputs.checked.checks)
    i = int(torch.randint(done.inputs.length, (1,), generator=generator))
    wrong = _unlike_alone(passes, done, rows, i)
    if wrong:  # Or rounding, which batches of another size have, put a ReLU on the other side of 0.
        wrong = _unlike(done, rows, i, passes.losses(done.inputs.batch)[i])
    if wrong:
        raise ModelError(
            f"The gradients of the first batch were right, but sample {i} of a later one has "
            f"others than plain autograd, for {', '.join(sorted(wrong))}: the path through the "
            'model depends on the data. Use gradients="functional", or batch_size=1.'
        )
    done.inputs.checked.note(done.inputs.length)


def _unlike_alone(passes: Passes, done: Pass, rows: Rows, i: int) -> list[str]:
    """Names of the parameters whose rows of sample i differ from those in a batch of one."""
    inputs = done.inputs
    alone = passes.losses(inputs.sample(i))
    check_independent(done.losses[i : i + 1], alone, inputs.tolerance, "alone", first=i)
    return _unlike(done, rows, i, alone)


def _unlike(done: Pass, rows: Rows, i: int, loss: Tensor) -> list[str]:
    """Names of the parameters whose rows of sample i are not the gradient of a loss."""
    own = {name: r[i] for name, r in rows.items()}
    return done.inputs.tolerance.unequal(own, done.inputs.gradient(loss, done.inputs.parameters))


def give_up_misplaced(passes: Passes, done: Pass) -> None:
    """Gives up layers whose inputs were picked, unless their rows are the samples' in turn.

    A loss that counts twice doubles the gradients at its own sample's rows, and no others.

    Args:
        passes: through the watched model.
        done: one of them.
    """
    picked = [use for use in done.uses if use.is_picked]
    if not picked:
        return
    edges, losses = [use.edge for use in picked], done.losses
    weights = 2.0 ** torch.arange(len(losses), device=losses.device).remainder(8)
    plain = backward(losses.sum(), edges, retain_graph=True)
    weighted = backward((weights.to(losses) * losses).sum(), edges, retain_graph=True)
    for use, g, g_weighted in zip(picked, plain, weighted, strict=True):
        if g is None or g_weighted is None:
            continue
        by_row = weights.to(g).repeat_interleave(use.each).view(-1, *(1,) * (g.ndim - 1))
        if done.inputs.tolerance.unequal({"": g_weighted}, {"": by_row * g}):
            passes.places.give_up(use.names, _MISPLACED)


def _steady(passes: Passes, inputs: Inputs) -> Pass:
    """A watched pass whose losses do not depend on chance or on other samples."""
    tolerance, checked = inputs.tolerance, inputs.checked
    done = passes.forward(inputs, watch=True)
    halves = _losses_in_halves(passes, inputs, done.uses)
    if tolerance.same(done.losses, halves):
        return done
    plain = passes.losses(inputs.batch).detach()
    if checked.repeats and not tolerance.same(done.losses, plain):
        check_steady(passes.losses(inputs.batch), plain, tolerance)
        checked.repeats = False  # nothing is random, so repeating inputs changes the answer
        raise BeginAgainError
    check_steady(done.losses, plain, tolerance)
    check_steady(_losses_in_halves(passes, inputs), halves, tolerance)
    check_independent(done.losses, halves, tolerance, "in a smaller batch")
    return done


def _losses_in_halves(passes: Passes, inputs: Inputs, uses: Sequence[Use] = ()) -> Tensor:
    """The losses of a batch, whose second half was computed first, each half from its end."""
    # Uses whose numbers of rows do not follow from that of the samples are given up.
    calls = [use for use in uses if isinstance(use, Call)]
    joints = [use for use in uses if isinstance(use, Joint)]
    backwards, middle = reversed_batch(inputs.batch), inputs.length // 2
    losses = []
    for half in (slice_batch(backwards, 0, middle), slice_batch(backwards, middle, None)):
        with row_counts(call.layer for call in calls) as counts:
            alone = passes.losses(half)
        passes.places.give_up(uneven(joints, alone), _UNEVEN)
        losses.append(alone.detach())
        for call in calls:
            length, found = len(losses[-1]), counts[call.layer.module]
            # A single row for all samples was repeated for each of them.
            if found.isdisjoint({call.each * length, 1 if call.each == 1 else 0}):
                passes.places.give_up(call.names, _UNEVEN)
    return torch.cat(losses).flip(0)
