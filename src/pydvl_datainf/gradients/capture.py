"""Per-sample gradients from one batched forward and backward pass, layer by layer.

Each layer that owns selected parameters is watched in the forward pass. One backward pass from the
summed losses gives the gradients at the layers' outputs, and a rule turns a layer's input and
output gradient into one gradient per sample. Comparison with plain autograd on the first batch
finds what this does not explain. Such parameters are watched where what follows from them is joined
to the samples, as positions are, or else at a module around their own, as adapters and experts
are. What neither explains (LSTMs, samples not along the first dimension) gets one backward pass per
sample from then on.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_length, signature
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients.calls import Rows
from pydvl_datainf.gradients.checks import (
    Tolerance,
    check_finite_rows,
    check_not_by_chance,
    check_steady,
)
from pydvl_datainf.gradients.comparison import check_any_sample, compared, give_up_misplaced
from pydvl_datainf.gradients.engines import LossGradientEngine
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.passes import Checked, Inputs, Pass, Passes, backward
from pydvl_datainf.gradients.paths import path_of
from pydvl_datainf.gradients.places import BeginAgainError, Places
from pydvl_datainf.gradients.supported import (
    check_mode,
    check_model,
    differentiating,
    rows_dtype,
    selected_parameters,
)
from pydvl_datainf.objectives import Objective, outside_language
from pydvl_datainf.vectors import BlockVectors

Noted: TypeAlias = tuple[Pass, Sequence[Tensor | None]]

_OF_IMAGES = "their layers may see images, or patches of them, in place of samples"


class CaptureEngine(LossGradientEngine):
    """Gradients by capture.

    What is computed is compared with plain autograd on the first batch of each kind, and whenever
    the graph behind the losses shows a step that was not compared before, such as the first use of
    an expert or an operation that only some data meets: rows add up to the gradient of a random
    combination of the losses, the first and the last sample's rows are those of a batch of one, and
    the losses of all samples are the same in two smaller batches and in another order, where layers
    have as many rows for each sample. Where the first batch of a kind draws random numbers, many
    passes over it have to give the same losses. Layers whose inputs were picked by numbers or masks
    are given up in any batch whose rows are not the samples' in turn. What the graph does not show,
    such as values that mix samples, is searched for by computing a sample drawn at random alone:
    one in 128, one of the second, fourth, eighth ... batch, and one of the first batch of each
    length. A fault in a share f of the samples stays unseen in n of them with a chance of about
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
        self.blocks = blocks
        self.places = Places(model, strict)
        self.passes = Passes(model, objective, self.places)
        self._kinds: dict[Any, Checked] = {}  # of batches
        self._noted: list[Noted] | None = None

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses, and their losses beside them.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block the gradients as rows, shape (B, d_l), and under `LOSS` the losses,
            (B, 1), all in float32, or float64 where the parameters are.

        Raises:
            ModelError: if the model is unsupported, or per-sample gradients are not defined.
            OutOfMemoryError: if the device has too little memory.
        """
        if not self._kinds:
            check_model(self.model)
        check_mode(self.model)
        with differentiating(self.model):
            kind, inputs = self._inputs(batch)
            self.passes.drawn = None if inputs.checked.checks else []
            losses, rows = self._alone(inputs) if inputs.length == 1 else self._captured(inputs)
            drawn, self.passes.drawn = self.passes.drawn, None
            if drawn and any(drawn):
                check_not_by_chance(partial(self.passes.losses, batch), inputs.tolerance)
            if left := inputs.parameters.keys() - rows.keys():
                rows = self._completed(inputs, losses, rows, left)
            self._kinds[kind] = inputs.checked
        vectors = self.blocks.gather(rows, inputs.device)
        check_finite_rows(vectors)
        vectors[LOSS] = losses[:, None].to(inputs.dtype)
        return vectors

    @contextmanager
    def known_pass(self, batch: Batch, *, is_compared: bool = False) -> Iterator[Pass | None]:
        """A pass over a batch, while the model is set to be differentiated.

        Args:
            batch: a checked batch.
            is_compared: whether `rows` of this batch were just computed.

        Yields:
            It; None where rows have to be compared with plain autograd, or do not all follow from
            it, so that `rows` should compute them.
        """
        check_mode(self.model)
        with differentiating(self.model):
            yield self._known_pass(self._inputs(batch)[1], is_compared=is_compared)

    @contextmanager
    def noting_passes(self) -> Iterator[list[Noted]]:
        """Notes the passes that rows follow from while it is open.

        Yields:
            Those of batches of which nothing had to be compared with plain autograd first, with the
            gradients at their uses.
        """
        noted: list[Noted] = []
        self._noted = noted
        try:
            yield noted
        finally:
            self._noted = None

    def _known_pass(self, inputs: Inputs, *, is_compared: bool) -> Pass | None:
        checked, length = inputs.checked, inputs.length
        is_whole = self.places.explained(inputs.parameters).keys() == inputs.parameters.keys()
        if not checked.steps or not is_whole or self.passes.images.has_images(inputs.batch):
            return None
        if not is_compared and replace(checked).count(length):  # a copy: whole rows count it
            return None
        try:
            done = self.passes.forward(inputs)
        except Exception:  # which computing whole rows mends, or raises
            return None
        if any(use.is_picked for use in done.uses) or not self.passes.path(done) <= checked.steps:
            return None
        if not is_compared:
            checked.count(length)
        return done

    def _inputs(self, batch: Batch) -> tuple[Any, Inputs]:
        """Of which kind a batch is, and what its passes have in common."""
        parameters = selected_parameters(self.model, self.blocks.shapes)
        length, dtype = batch_length(batch), rows_dtype(parameters.values())
        device = next(self.model.parameters()).device
        tolerance = Tolerance.of(self.model, device)
        kind = (signature(batch), length == 1, tolerance, self.model.training)
        checked = self._kinds.get(kind, Checked())
        return kind, Inputs(batch, length, parameters, dtype, tolerance, checked, device)

    def _alone(self, inputs: Inputs) -> tuple[Tensor, Rows]:
        """Loss and row of a batch of one, which plain autograd gives itself."""
        losses = self.passes.losses(inputs.batch)
        if not inputs.checked.checks:
            path_of(losses, inputs.parameters)
            again = self.passes.losses(inputs.batch)
            if not inputs.tolerance.same(losses, again):  # weights may settle at their first use
                losses, again = again, self.passes.losses(inputs.batch)
            check_steady(losses, again, inputs.tolerance)
            inputs.checked.note(1)
        gradient = inputs.gradient(losses, inputs.parameters)
        return losses.detach(), {name: g[None] for name, g in gradient.items()}

    def _captured(self, inputs: Inputs) -> tuple[Tensor, Rows]:
        """Losses, and rows of all parameters that capture explains, however often it begins."""
        checked, failed = inputs.checked, False
        while True:
            try:
                return self._captured_once(inputs)
            except BeginAgainError:
                continue
            except Exception as error:
                is_final = isinstance(error, (ModelError, torch.cuda.OutOfMemoryError))
                may_help = checked.repeats and not is_final
                checked.repeats |= failed  # it was something else
                if not may_help:
                    raise
            # Inputs that were repeated for all samples may be what the model cannot take.
            failed, checked.repeats = True, False

    def _captured_once(self, inputs: Inputs) -> tuple[Tensor, Rows]:
        """The same, with parameters watched and inputs repeated as they are now."""
        if self.passes.images.has_images(inputs.batch):
            self.places.leave(outside_language(self.model, inputs.parameters), _OF_IMAGES)
        if inputs.checked.steps:
            done = self.passes.forward(inputs)
            if self.passes.path(done) <= inputs.checked.steps:
                if any(use.is_picked for use in done.uses):
                    give_up_misplaced(self.passes, done)
                grads = backward(done.losses.sum(), [use.edge for use in done.uses])
                rows = self.passes.rows(done, grads)
                if self._noted is not None:
                    self._noted.append((done, grads))
                if inputs.checked.count(inputs.length):
                    check_any_sample(self.passes, done, rows)
                return done.losses.detach(), rows
            del done  # and its graph
        return compared(self.passes, inputs)

    def _completed(self, inputs: Inputs, losses: Tensor, rows: Rows, left: Collection[str]) -> Rows:
        """The rows of all parameters: one forward and backward pass per sample for what is left."""
        samples = []
        for i in range(inputs.length):
            alone = self.passes.losses(inputs.sample(i))
            # Otherwise, as where a router is undecided between two experts, this pass has it all.
            same = inputs.tolerance.close(losses[i : i + 1], alone)
            samples.append(inputs.gradient(alone, left if same else inputs.parameters))
            for name in rows.keys() & samples[i].keys():
                rows[name][i] = samples[i].pop(name)
        return rows | {name: torch.stack([sample[name] for sample in samples]) for name in left}
