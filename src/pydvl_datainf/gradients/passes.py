"""One pass over a batch: the losses, where parameters are used in it, and the rows that follow."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_named, copy_batch, slice_batch
from pydvl_datainf.devices import devices_of
from pydvl_datainf.errors import ModelError, ObjectiveError
from pydvl_datainf.gradients.calls import Call, Rows
from pydvl_datainf.gradients.checks import Tolerance, check_finite_losses, random_states
from pydvl_datainf.gradients.joints import Joint, joints_of
from pydvl_datainf.gradients.layers import layers_of
from pydvl_datainf.gradients.paths import REENTRANT, Path, path_of, used_in
from pydvl_datainf.gradients.places import Places
from pydvl_datainf.gradients.recording import Recording
from pydvl_datainf.objectives import ImageLayout, Objective, check_losses

OUTSIDE = "they are used outside their layers"
_NOT_LEADING = "their layers' inputs and outputs are not tensors that lead with the samples"

SAMPLES_PER_CHECK = 128
"""One sample in so many is computed alone too, to find what the graph does not show."""

Use: TypeAlias = Call | Joint


@dataclass(slots=True)
class Checked:
    """What was checked for batches of one kind: names, dtypes and dimensions of their tensors.

    Args:
        steps: of the paths through the model.
        lengths: numbers of samples.
        batches: how many there were.
        unchecked: samples since the last one that was computed alone.
        checks: how often samples were computed alone.
        repeats: inputs of leading size 1 are repeated for all samples.
    """

    steps: set[Any] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)
    batches: int = 1
    unchecked: int = 0
    checks: int = 0
    repeats: bool = True

    def count(self, length: int) -> bool:
        """Counts a batch of so many samples; tells whether one is to be computed alone too."""
        self.batches += 1
        self.unchecked += length
        is_due = self.unchecked >= SAMPLES_PER_CHECK or self.batches.bit_count() == 1
        return is_due or length not in self.lengths

    def note(self, length: int) -> None:
        """Notes that samples of a batch of so many were computed alone."""
        self.lengths.add(length)
        self.unchecked = 0
        self.checks += 1


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch whose rows are computed, and what is common to all passes over it.

    Args:
        batch: of B samples.
        length: B.
        parameters: that are differentiated, by name.
        dtype: of the rows.
        tolerance: of the model.
        checked: for batches of its kind.
        device: of the rows.
    """

    batch: Batch
    length: int
    parameters: Mapping[str, nn.Parameter]
    dtype: torch.dtype
    tolerance: Tolerance
    checked: Checked
    device: torch.device

    def sample(self, i: int) -> Batch:
        """Sample i as a batch of one."""
        return slice_batch(self.batch, i, i + 1)

    def gradient(self, losses: Tensor, names: Collection[str]) -> Rows:
        """The gradient of the sum of losses by some of the parameters, by plain autograd."""
        parameters = [self.parameters[name] for name in names]
        grads = backward(losses.sum(), parameters)
        return {
            name: torch.zeros_like(p, dtype=self.dtype) if g is None else self.dense(g)
            for name, p, g in zip(names, parameters, grads, strict=True)
        }

    def dense(self, grad: Tensor) -> Tensor:
        """A gradient by plain autograd as what rows are made of."""
        return (grad.to_dense() if grad.is_sparse else grad).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass over a batch.

    Args:
        inputs: what it is over.
        losses: one per sample, (B,), with a graph.
        uses: calls and joints, where parameters that capture explains are used.
    """

    inputs: Inputs
    losses: Tensor
    uses: Sequence[Use]


class Passes:
    """Passes through a model whose parameters are watched.

    Args:
        model: left as it was.
        objective: gives one loss per sample.
        places: where its parameters are watched.
    """

    def __init__(self, model: nn.Module, objective: Objective, places: Places):
        self.model = model
        self.objective = objective
        self.places = places
        self.images = ImageLayout.of(model)
        self.copied: set[nn.Module] = set()  # layers whose outputs are changed in place
        self.drawn: list[bool] | None = None
        """Whether each pass drew random numbers, while that is noted; not what is around passes,
        since type checkers draw some, too."""

    def losses(self, batch: Batch) -> Tensor:
        """The losses of a batch, unwatched or watched.

        Args:
            batch: of B samples.

        Returns:
            One loss per sample, (B,), with a graph.

        Raises:
            ObjectiveError: if there is none, or it does not depend on the parameters.
        """
        given = self.images.as_given(copy_batch(batch))
        before = None if self.drawn is None else random_states(devices_of(self.model))
        losses = check_losses(self.objective.losses(self.model, given), batch)
        if self.drawn is not None:
            self.drawn.append(random_states(devices_of(self.model)) != before)
        if not losses.requires_grad:
            raise ObjectiveError(
                "The losses do not depend on the selected parameters through autograd. The "
                "objective must not detach, use .item() or run under no_grad, and the parameters "
                "must take part: adapters that are disabled or merged do not, nor does what sees "
                "images in a sample without any; leave such samples out."
            )
        check_finite_losses(losses, batch)
        return losses

    def forward(self, inputs: Inputs, *, watch: bool = False) -> Pass:
        """A watched pass.

        Args:
            inputs: what it is over.
            watch: look for outputs that are changed in place, and begin again with copies of them.

        Returns:
            The pass.
        """
        explained = self.places.explained(inputs.parameters)
        joined = {n: explained.pop(n) for n in [*explained] if self.places.joints.get(n)}
        recording = Recording(inputs.length, self.copied, inputs.checked.repeats, watch)
        with recording.of(layers_of(self.model, explained, self.places.around)):
            losses = self.losses(inputs.batch)
        if recording.unexplained:  # what takes no part, such as a scale of other losses, is zero
            used = used_in(losses, explained)
            self.places.give_up(recording.unexplained & used, _NOT_LEADING)
        joints: dict[str, list[Joint]] = {}
        if joined:
            joints = joints_of(losses, joined, inputs.length)
            self.places.give_up(joined.keys() - joints.keys(), OUTSIDE)
        if watch and recording.lost:
            self.copied |= recording.lost
            return self.forward(inputs)
        return Pass(inputs, losses, [*recording.calls, *chain.from_iterable(joints.values())])

    def path(self, done: Pass) -> Path:
        """What of a pass has to be compared: all but what is computed sample by sample."""
        # The number of tokens is no other path; a number that data decides, as experts have it, is.
        tokens = {t.shape[1] for t in batch_named(done.inputs.batch).values() if t.ndim > 1}
        where = self.places.around.get  # calls of another module are another path
        called = [
            (name, ("tokens" if use.each in tokens else use.each, use.pattern, where(name)))
            for use in done.uses
            for name in use.names
        ]
        return path_of(done.losses, self.places.explained(done.inputs.parameters), called)

    def rows(
        self,
        done: Pass,
        grads: Sequence[Tensor | None] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Rows:
        """The sum of the rows of all uses; zeros for explained parameters that had no use.

        Args:
            done: the pass, whose graph is used up.
            grads: at the outputs of its uses; None = to be computed.
            wanted: names of parameters; None = all.

        Returns:
            For each wanted and explained parameter rows (B, *shape).
        """
        if grads is None:
            grads = backward(done.losses.sum(), [use.edge for use in done.uses])
        if wanted is None:
            wanted = done.inputs.parameters
        length, dtype = done.inputs.length, done.inputs.dtype
        rows: Rows = {}
        unmapped: set[str] = set()
        for use, grad in zip(done.uses, grads, strict=True):
            if grad is None or not set(wanted).intersection(use.names):
                continue
            new = use.rows(grad, dtype)
            if not new:
                unmapped |= set(use.names)
            for name, value in new.items():
                here = value.to(done.inputs.parameters[name].device)
                rows[name] = rows[name] + here if name in rows else here
        if unmapped:
            self.places.give_up(unmapped, "their layers cannot be called for one sample")
        return {
            name: rows[name] if name in rows else p.new_zeros(length, *p.shape, dtype=dtype)
            for name, p in self.places.explained(done.inputs.parameters).items()
            if name in wanted
        }


def backward(
    total: Tensor, inputs: Sequence[Any], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients by plain autograd.

    Args:
        total: that is differentiated.
        inputs: by which, tensors or edges.
        retain_graph: since more gradients are to come.

    Returns:
        For each input the gradient; None where the total does not depend on it.

    Raises:
        ModelError: if a part is checkpointed in the re-entrant form.
        RuntimeError: whatever else autograd refuses.
    """
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=retain_graph)
    except RuntimeError as error:
        if "compatible with .grad()" not in str(error):
            raise
        raise ModelError(REENTRANT) from error
