"""Per-sample gradients from one batched forward and backward pass, layer by layer.

Each layer that owns selected parameters is watched in the forward pass. One backward pass from the
summed losses gives the gradients at the layers' outputs, and a rule turns a layer's input and
output gradient into one gradient per sample. Comparison with plain autograd on the first batch
finds what this does not explain. Such parameters are watched where what follows from them is joined
to the samples, as positions are, or else at a module around their own, as adapters and experts
are. What neither explains (LSTMs, samples not along the first dimension) gets one backward pass per
sample from then on.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias
from warnings import warn

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import (
    Batch,
    batch_length,
    batch_named,
    copy_batch,
    reversed_batch,
    signature,
    slice_batch,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import ModelError, ObjectiveError
from pydvl_datainf.gradients.checks import (
    Tolerance,
    check_finite_losses,
    check_finite_rows,
    check_independent,
)
from pydvl_datainf.gradients.joints import Joint, joints_of, uneven
from pydvl_datainf.gradients.paths import REENTRANT, Path, path_of, used_in
from pydvl_datainf.gradients.recording import (
    Call,
    Recording,
    Rows,
    layers_of,
    next_around,
    recorded,
    row_counts,
)
from pydvl_datainf.gradients.supported import (
    check_mode,
    check_model,
    differentiating,
    rows_dtype,
    selected_parameters,
)
from pydvl_datainf.objectives import ImageLayout, Objective, check_losses, outside_language
from pydvl_datainf.terminal import visible
from pydvl_datainf.vectors import BlockVectors

_OUTSIDE = "they are used outside their layers"
_NOT_LEADING = "their layers' inputs and outputs are not tensors that lead with the samples"
_OF_IMAGES = "their layers may see images, or patches of them, in place of samples"
_UNEVEN = "the number of their rows does not follow from that of the samples"

_Use: TypeAlias = Call | Joint

SAMPLES_PER_CHECK = 128
"""One sample in so many is computed alone too, to find what the graph does not show."""


@dataclass(slots=True)
class _Checked:
    """What was checked for batches of one kind: names, dtypes and dimensions of their tensors."""

    steps: set[Any] = field(default_factory=set)  # of the paths through the model
    lengths: set[int] = field(default_factory=set)
    batches: int = 1
    unchecked: int = 0  # samples since the last one that was computed alone
    checks: int = 0


class _ElsewhereError(Exception):
    """Parameters are to be watched at other modules, in a pass that begins again."""


class CaptureEngine:
    """Gradients by capture.

    What is computed is compared with plain autograd on the first batch of each kind, and whenever
    the graph behind the losses shows a step that was not compared before, such as the first use of
    an expert or an operation that only some data meets: rows add up to the gradient of a random
    combination of the losses, the first and the last sample's rows are those of a batch of one, and
    the losses of all samples are the same in two smaller batches and in another order, where layers
    have as many rows for each sample. Layers whose inputs were picked by numbers or masks are given
    up in any batch whose rows are not the samples' in turn. What the graph does not show, such as
    values that mix samples, is searched for by computing a sample drawn at random alone: one in
    128, one of the second, fourth, eighth ... batch, and one of the first batch of each length. A
    fault in a share f of the samples stays unseen in n of them with a chance of about
    (1 - f)^(n/128).

    Args:
        model: left exactly as it was: parameters, `.grad`, mode, hooks and the random state.
        objective: gives one loss per sample.
        blocks: the parameters that are differentiated.
        strict: raise for what capture cannot explain, instead of one backward pass per sample.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, blocks: Blocks, *, strict: bool = False
    ):
        self.model = model
        self.objective = objective
        self.blocks = blocks
        self.strict = strict
        self._images = ImageLayout.of(model)
        self._kinds: dict[Any, _Checked] = {}  # of batches
        self._at_joints: dict[str, bool] = {}  # parameters for which that was tried: still so?
        self._around: dict[str, str] = {}  # parameters that are watched at a module around theirs
        self._reasons: dict[str, str] = {}  # why their own layers do not explain them
        self._unexplained: set[str] = set()  # parameters that get one backward pass per sample
        self._copied: set[nn.Module] = set()  # layers whose outputs are changed in place
        self._expand = True  # repeat inputs of leading size 1 for all samples

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block the gradients as rows, shape (B, d_l), in float32, or float64 where the
            parameters are.

        Raises:
            ModelError: if the model is unsupported, or per-sample gradients are not defined.
            OutOfMemoryError: if the device has too little memory.
        """
        if not self._kinds:
            check_model(self.model)
        check_mode(self.model)
        parameters = selected_parameters(self.model, self.blocks.shapes)
        device = next(iter(parameters.values())).device
        with differentiating(self.model, device):
            rows = self._rows(batch, parameters, Tolerance.of(self.model, device))
        vectors = self.blocks.gather(rows)
        check_finite_rows(vectors)
        return vectors

    def _rows(
        self, batch: Batch, parameters: Mapping[str, nn.Parameter], tolerance: Tolerance
    ) -> Rows:
        kind = (signature(batch), batch_length(batch) == 1, tolerance, self.model.training)
        checked = self._kinds.get(kind, _Checked())
        if batch_length(batch) == 1:  # plain autograd gives the row itself
            losses = self._losses(batch)
            if kind not in self._kinds:
                path_of(losses, parameters)
                self._check_steady(losses, self._losses(batch), tolerance)
            rows = {name: g[None] for name, g in _gradient(losses, parameters).items()}
        else:
            losses, rows = self._without_expansion_on_failure(
                lambda: self._captured(batch, parameters, tolerance, checked)
            )
            rows = self._completed(batch, parameters, tolerance, losses, rows)
        self._kinds[kind] = checked
        return rows

    def _without_expansion_on_failure(
        self, compute: Callable[[], tuple[Tensor, Rows]]
    ) -> tuple[Tensor, Rows]:
        """Tries again without repeating inputs, since that may be what the model cannot take."""
        try:
            return compute()
        except (ModelError, torch.cuda.OutOfMemoryError):
            raise
        except Exception:
            if not self._expand:
                raise
        self._expand = False
        try:
            return compute()
        except Exception:
            self._expand = True  # it was something else
            raise

    # One batched pass

    def _captured(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        checked: _Checked,
    ) -> tuple[Tensor, Rows]:
        """Losses, and rows of all parameters that capture explains."""
        if self._images.has_images(batch):
            self._leave(outside_language(self.model, parameters), _OF_IMAGES)
        while True:
            try:
                return self._captured_here(batch, parameters, tolerance, checked)
            except _ElsewhereError:
                continue

    def _captured_here(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        checked: _Checked,
    ) -> tuple[Tensor, Rows]:
        """The same, with each parameter watched where it is now."""
        if not checked.steps:
            return self._compared(batch, parameters, tolerance, checked)
        losses, recording, calls = self._forward(batch, parameters)
        if not self._path(batch, losses, calls, parameters) <= checked.steps:
            del losses, recording, calls  # and their graph
            return self._compared(batch, parameters, tolerance, checked)
        self._give_up_misplaced(losses, calls, tolerance)
        grads = _backward(losses.sum(), [call.edge for call in calls])
        rows = self._combined(calls, grads, parameters, len(losses))
        checked.batches += 1
        checked.unchecked += len(losses)
        is_due = checked.unchecked >= SAMPLES_PER_CHECK or checked.batches.bit_count() == 1
        if is_due or len(losses) not in checked.lengths:
            self._check_any_sample(batch, parameters, tolerance, checked, losses, rows)
        return losses.detach(), rows

    def _path(
        self,
        batch: Batch,
        losses: Tensor,
        calls: Iterable[_Use],
        parameters: Mapping[str, nn.Parameter],
    ) -> Path:
        """What of a pass has to be compared: all but what is computed sample by sample."""
        explained = {n: p for n, p in parameters.items() if n not in self._unexplained}
        # The number of tokens is no other path; a number that data decides, as experts have it, is.
        tokens = {t.shape[1] for t in batch_named(batch).values() if t.ndim > 1}
        where = self._around.get  # calls of another module are another path
        called = [
            (name, ("tokens" if call.each in tokens else call.each, call.pattern, where(name)))
            for call in calls
            for name in call.names
        ]
        return path_of(losses, explained, called)

    def _forward(
        self, batch: Batch, parameters: Mapping[str, nn.Parameter], *, watch: bool = False
    ) -> tuple[Tensor, Recording, list[_Use]]:
        """Losses, what was recorded, and where parameters that capture explains are used."""
        explained = {n: p for n, p in parameters.items() if n not in self._unexplained}
        joined = {n: explained.pop(n) for n, still in self._at_joints.items() if still}
        layers, recording = layers_of(self.model, explained, self._around), Recording(watch)
        with recorded(
            recording, layers, batch_length(batch), copied=self._copied, expand=self._expand
        ):
            losses = self._losses(batch)
        if recording.unexplained:  # what takes no part, such as a scale of other losses, is zero
            used = used_in(losses, explained)
            self._give_up(recording.unexplained & used, _NOT_LEADING)
        joints = joints_of(losses, joined, batch_length(batch)) if joined else {}
        self._give_up(joined.keys() - joints.keys(), _OUTSIDE)
        return losses, recording, [*recording.calls, *chain.from_iterable(joints.values())]

    def _losses(self, batch: Batch) -> Tensor:
        given = self._images.as_given(copy_batch(batch))
        losses = check_losses(self.objective.losses(self.model, given), batch)
        if not losses.requires_grad:
            raise ObjectiveError(
                "The losses do not depend on the selected parameters through autograd. The "
                "objective must not detach, use .item() or run under no_grad, and the parameters "
                "must take part: adapters that are disabled or merged do not, nor does what sees "
                "images in a sample without any; leave such samples out."
            )
        check_finite_losses(losses, batch)
        return losses

    def _combined(
        self,
        calls: Iterable[_Use],
        grads: Iterable[Tensor | None],
        parameters: Mapping[str, nn.Parameter],
        length: int,
    ) -> Rows:
        """The sum of the rows of all calls; zeros for explained parameters that no call used."""
        dtype = rows_dtype(parameters.values())
        rows: Rows = {}
        unmapped: set[str] = set()
        for call, grad in zip(calls, grads, strict=True):
            new = {} if grad is None else call.rows(grad, dtype)
            if grad is not None and not new:
                unmapped |= set(call.names)
            for name, value in new.items():
                rows[name] = rows[name] + value if name in rows else value
        self._give_up(unmapped, "their layers cannot be called for one sample")
        for name, p in parameters.items():
            if name not in rows:
                rows[name] = p.new_zeros(length, *p.shape, dtype=dtype)
        return {name: rows[name] for name in parameters if name not in self._unexplained}

    # What capture cannot explain

    def _give_up(self, names: Iterable[str], reason: str) -> None:
        """Watches parameters elsewhere, or leaves them, where every other place was tried."""
        new = sorted(set(names) - self._unexplained)
        if not new:
            return
        self._reasons = dict.fromkeys(new, reason) | self._reasons
        untried = dict.fromkeys(set(new) - self._at_joints.keys(), True)
        self._at_joints |= dict.fromkeys(new, False) | untried
        around = {n: next_around(self.model, n, self._around.get(n)) for n in new}
        found = {n: path for n, path in around.items() if path is not None and n not in untried}
        self._around |= found
        if untried or found:
            raise _ElsewhereError
        self._leave(new, reason)

    def _leave(self, names: Iterable[str], reason: str) -> None:
        """Leaves parameters to one backward pass per sample."""
        new = sorted(set(names) - self._unexplained)
        if not new:
            return
        self._reasons = dict.fromkeys(new, reason) | self._reasons
        first = {self._reasons[n] for n in new}
        groups = [(r, [n for n in new if self._reasons[n] == r]) for r in sorted(first)]
        told = "; ".join(f"{len(g)} parameters ({', '.join(g)}), because {r}" for r, g in groups)
        if self.strict:
            raise ModelError(
                f'Capture cannot explain {told}. Use gradients="auto" or "functional".'
            )
        self._unexplained |= set(new)
        told = visible(
            f"One backward pass per sample for {told}. This is exact, but slower. Freeze these "
            "parameters, or leave them out with a block_structure, to avoid it."
        )
        warn(told, stacklevel=2)

    def _completed(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        losses: Tensor,
        rows: Rows,
    ) -> Rows:
        """The rows of all parameters: one forward and backward pass per sample for what is left."""
        left = {name: p for name, p in parameters.items() if name not in rows}
        if not left:
            return rows
        samples = []
        for i in range(len(losses)):
            alone = self._losses(slice_batch(batch, i, i + 1))
            # Otherwise, as where a router is undecided between two experts, this pass has it all.
            same = tolerance.close(losses[i : i + 1], alone)
            samples.append(_gradient(alone, left if same else parameters))
            for name in rows.keys() & samples[i].keys():
                rows[name][i] = samples[i].pop(name)
        return rows | {name: torch.stack([sample[name] for sample in samples]) for name in left}

    # Trust

    def _compared(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        checked: _Checked,
    ) -> tuple[Tensor, Rows]:
        """Losses and rows of a batch with new steps, compared with plain autograd."""
        losses, calls = self._steady_forward(batch, parameters, tolerance)
        # Random weights, from a generator of our own: a plain sum is blind to swapped samples.
        random = torch.randn(len(losses), generator=torch.Generator().manual_seed(checked.checks))
        weights = random.to(losses.device, rows_dtype(parameters.values()))
        self._give_up_misplaced(losses, calls, tolerance)
        grads = _backward(losses.sum(), [call.edge for call in calls], retain_graph=True)
        joined = any(isinstance(call, Joint) for call in calls)  # which go on in the graph
        total = (weights * losses).sum()
        totals = _backward(total, list(parameters.values()), retain_graph=joined)
        truth = {
            name: _dense(g).to(weights.dtype)
            for name, g in zip(parameters, totals, strict=True)
            if g is not None
        }
        called = {name for call in calls for name in call.names}
        self._give_up(truth.keys() - called - self._unexplained, _OUTSIDE)
        rows = self._combined(calls, grads, parameters, len(losses))
        sums = {name: torch.einsum("b,b...->...", weights, r) for name, r in rows.items()}
        self._give_up(
            tolerance.unequal(sums, truth), "their rows do not add up to the gradient of the batch"
        )
        for i in (0, len(losses) - 1):
            wrong = self._unlike_alone(i, batch, parameters, tolerance, losses, rows)
            self._give_up(wrong, "their rows are not those of a sample alone")
        checked.steps |= self._path(batch, losses, calls, parameters)
        checked.lengths.add(len(losses))
        checked.unchecked = 0
        checked.checks += 1
        return losses.detach(), {n: r for n, r in rows.items() if n not in self._unexplained}

    def _steady_forward(
        self, batch: Batch, parameters: Mapping[str, nn.Parameter], tolerance: Tolerance
    ) -> tuple[Tensor, Collection[_Use]]:
        """A recorded forward pass whose losses do not depend on chance or on other samples."""
        losses, calls = self._lossless_forward(batch, parameters)
        halves = self._losses_in_halves(batch, calls)
        if tolerance.same(losses, halves):
            return losses, calls
        plain = self._losses(batch).detach()
        if self._expand and not tolerance.same(losses, plain):
            self._check_steady(self._losses(batch), plain, tolerance)
            self._expand = False  # nothing is random, so repeating inputs changes the answer
            losses, calls = self._lossless_forward(batch, parameters)
        self._check_steady(losses, plain, tolerance)
        self._check_steady(self._losses_in_halves(batch), halves, tolerance)
        check_independent(losses, halves, tolerance, "in a smaller batch")
        return losses, calls

    def _losses_in_halves(self, batch: Batch, uses: Collection[_Use] = ()) -> Tensor:
        """The losses of a batch, whose second half was computed first, each half from its end."""
        # Uses whose numbers of rows do not follow from that of the samples are given up.
        calls = [use for use in uses if isinstance(use, Call)]
        joints = [use for use in uses if isinstance(use, Joint)]
        backwards, middle = reversed_batch(batch), batch_length(batch) // 2
        losses = []
        for half in (slice_batch(backwards, 0, middle), slice_batch(backwards, middle, None)):
            with row_counts(call.layer for call in calls) as counts:
                alone = self._losses(half)
            self._give_up(uneven(joints, alone), _UNEVEN)
            losses.append(alone.detach())
            for call in calls:
                length, found = len(losses[-1]), counts[call.layer.module]
                # A single row for all samples was repeated for each of them.
                if found.isdisjoint({call.each * length, 1 if call.each == 1 else 0}):
                    self._give_up(call.names, _UNEVEN)
        return torch.cat(losses).flip(0)

    def _lossless_forward(
        self, batch: Batch, parameters: Mapping[str, nn.Parameter]
    ) -> tuple[Tensor, Collection[_Use]]:
        """A forward pass in which outputs that are changed in place were copied first."""
        losses, recording, calls = self._forward(batch, parameters, watch=True)
        if recording.lost:
            self._copied |= recording.lost
            losses, recording, calls = self._forward(batch, parameters)
        return losses, calls

    def _give_up_misplaced(
        self, losses: Tensor, calls: Iterable[_Use], tolerance: Tolerance
    ) -> None:
        """Gives up layers whose inputs were picked, unless their rows are the samples' in turn.

        A loss that counts twice doubles the gradients at its own sample's rows, and no others.
        """
        picked = [call for call in calls if call.is_picked]
        if not picked:
            return
        edges = [call.edge for call in picked]
        weights = 2.0 ** torch.arange(len(losses), device=losses.device).remainder(8)
        plain = _backward(losses.sum(), edges, retain_graph=True)
        weighted = _backward((weights.to(losses) * losses).sum(), edges, retain_graph=True)
        for call, g, g_weighted in zip(picked, plain, weighted, strict=True):
            if g is None or g_weighted is None:
                continue
            by_row = weights.to(g).repeat_interleave(call.each).view(-1, *(1,) * (g.ndim - 1))
            if tolerance.unequal({"": g_weighted}, {"": by_row * g}):
                self._give_up(call.names, "their rows go where data decides")

    def _check_steady(self, losses: Tensor, again: Tensor, tolerance: Tolerance) -> None:
        if not tolerance.same(losses, again):
            raise ModelError(
                "Two forward passes over one batch gave different losses: something in the model "
                "or the objective is random. Call model.eval(), switch functional dropout off, and "
                "draw noise from a generator that is seeded for each sample."
            )

    def _unlike_alone(
        self,
        i: int,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        losses: Tensor,
        rows: Rows,
    ) -> list[str]:
        """Names of the parameters whose rows of sample i differ from those in a batch of one."""
        alone = self._losses(slice_batch(batch, i, i + 1))
        check_independent(losses[i : i + 1], alone, tolerance, "alone", first=i)
        return tolerance.unequal(
            {name: r[i] for name, r in rows.items()}, _gradient(alone, parameters)
        )

    def _check_any_sample(
        self,
        batch: Batch,
        parameters: Mapping[str, nn.Parameter],
        tolerance: Tolerance,
        checked: _Checked,
        losses: Tensor,
        rows: Rows,
    ) -> None:
        """Compares the row of a sample drawn at random with plain autograd."""
        generator = torch.Generator().manual_seed(checked.checks)
        i = int(torch.randint(len(losses), (1,), generator=generator))
        wrong = self._unlike_alone(i, batch, parameters, tolerance, losses, rows)
        if wrong:
            raise ModelError(
                f"The gradients of the first batch were right, but sample {i} of a later one has "
                f"others than plain autograd, for {', '.join(sorted(wrong))}: the path through the "
                'model depends on the data. Use gradients="functional", or batch_size=1.'
            )
        checked.lengths.add(len(losses))
        checked.unchecked = 0
        checked.checks += 1


def _gradient(losses: Tensor, parameters: Mapping[str, nn.Parameter]) -> Rows:
    """The gradient of the sum of losses, by plain autograd."""
    grads = _backward(losses.sum(), list(parameters.values()))
    dtype = rows_dtype(parameters.values())
    return {
        name: torch.zeros_like(p, dtype=dtype) if g is None else _dense(g).to(dtype)
        for (name, p), g in zip(parameters.items(), grads, strict=True)
    }


def _backward(
    total: Tensor, inputs: list[Any], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=retain_graph)
    except RuntimeError as error:
        if "compatible with .grad()" not in str(error):
            raise
        raise ModelError(REENTRANT) from error


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad
