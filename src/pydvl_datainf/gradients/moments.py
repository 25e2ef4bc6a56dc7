"""Second moments of the inputs and output gradients of linear layers, summed over training data.

One forward and one backward pass a batch, from the summed losses to the layers' outputs, or those
of capture: see `moments_beside`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from pydvl_datainf.batches import Batch, slice_batch
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients.by_length import pieces_by_length
from pydvl_datainf.gradients.calls import only_tensor
from pydvl_datainf.gradients.passes import Passes, backward
from pydvl_datainf.gradients.places import Places
from pydvl_datainf.gradients.rules import is_transposed
from pydvl_datainf.gradients.supported import differentiating
from pydvl_datainf.inverse.damping import NOISE
from pydvl_datainf.objectives import Objective

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class LinearBlock:
    """A block whose rows are Σ_t g_t x_tᵀ, flattened: a weight, a bias behind it, or a bias alone.

    A bias is the weight of an input that is 1. Of a convolution the x_t are patches. Where a weight
    is stored as (inputs, outputs), rows are Σ_t x_t g_tᵀ: all the same with g and x swapped.

    Args:
        weight: of the layer; None = the block is a bias alone.
        bias: of the layer; None = it is not in the block.
        modules: in which they are; several where they are tied.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    modules: Sequence[nn.Module]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs o and inputs i, that of the bias among them; swapped of a stored transpose."""
        p = self.bias if self.weight is None else self.weight
        assert p is not None
        inputs = 0 if self.weight is None else self.weight[0].numel()
        if self.is_transposed:
            return len(p) + (self.bias is not None), inputs
        return len(p), inputs + (self.bias is not None)

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored as (inputs, outputs)."""
        return self.weight is not None and is_transposed(self.modules[0])

    @property
    def has_both(self) -> bool:
        """Whether a bias stands behind the weight that is no row of it, but a column."""
        return self.weight is not None and self.bias is not None and not self.is_transposed

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The inputs of a call (t, i), with that of the bias behind them."""
        columns = [x] if self.weight is not None else []
        if self.bias is not None:
            columns.append(torch.full_like(x[:, :1], float(module.bias is self.bias)))
        return torch.cat(columns, 1)

    def factors(self, module: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows the left factors (t, o) and the right ones (t, i), from a call's x and g."""
        inputs = self.inputs(module, x)
        return (inputs, g) if self.is_transposed else (g, inputs)


def linear_blocks(model: nn.Module, blocks: Blocks) -> dict[str, LinearBlock]:
    """The blocks that are one linear layer, or a convolution without groups.

    Args:
        model: that has the parameters.
        blocks: of parameters.

    Returns:
        Those blocks by name. Whether the layers are called, a pass will show.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for p in module._parameters.values():
            owners.setdefault(id(p), []).append(module)
    found = {}
    for block, names in blocks.members.items():
        parameters = [model.get_parameter(name) for name in names]
        linear = _linear(parameters, [owners[id(p)] for p in parameters])
        if linear is not None:
            found[block] = linear
    return found


def _linear(parameters: list[nn.Parameter], owners: list[list[nn.Module]]) -> LinearBlock | None:
    """The parameters of a block as those of one layer, if they are."""
    if not all(_is_linear(module) for modules in owners for module in modules):
        return None
    roles = tuple(_role(p, modules[0]) for p, modules in zip(parameters, owners, strict=True))
    if roles not in (("weight",), ("bias",), ("weight", "bias")):
        return None
    if not set(owners[-1]) <= set(owners[0]):  # the bias is also that of another weight
        return None
    if len({is_transposed(module) for module in owners[0]}) > 1:  # tied the other way round
        return None
    named = dict(zip(roles, parameters, strict=True))
    return LinearBlock(named.get("weight"), named.get("bias"), owners[0])


def _is_linear(module: nn.Module) -> bool:
    """Whether outputs are the weight times the inputs, or times patches of them."""
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    is_plain = kind is not None and type(module).forward is kind.forward
    return is_transposed(module) or (is_plain and getattr(module, "groups", 1) == 1)


def _role(p: nn.Parameter, module: nn.Module) -> str | None:
    """What a parameter is to the module that has it."""
    return next((role for role in ("weight", "bias") if getattr(module, role) is p), None)


@dataclass(slots=True)
class LayerMoments:
    """A = Σ x xᵀ and S = Σ g gᵀ of the layers of some blocks, added up over batches, in float64.

    Of a weight that is stored as (inputs, outputs) it is the other way round, as in its rows.
    They run over the positions at which a layer's output gradient g is larger than 16 machine
    epsilons of the sample's largest in that call: others, such as padding that no loss sees or
    queries with a single key, add nothing to a gradient but rounding. How samples are batched does
    not matter to that. Layers that are called several times, or tied, add up their calls.

    Args:
        model: left as it was.
        objective: gives one loss per sample.
        layers: by block.
        sums: A (i, i) and S (o, o) of each block whose layer took part.
        relabel: gives a batch other labels, at which the output gradients are taken, and by what
            those of each sample are multiplied (None = by one), as `DrawnLabels` does; None = the
            given labels serve.
        max_tokens: the largest number of tokens in one pass, as in `ByLengthEngine`.
    """

    model: nn.Module
    objective: Objective
    layers: Mapping[str, LinearBlock]
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    relabel: Callable[[Batch], tuple[Batch, Tensor | None]] | None = None
    max_tokens: int | None = None

    def add(self, batch: Batch) -> None:
        """Adds those of a checked batch on the model's device.

        Args:
            batch: of some samples.

        Raises:
            ModelError: if the model is unsupported.
            OutOfMemoryError: if the device has too little memory.
        """
        if self.max_tokens is None:
            self._add(batch)
            return
        for _, piece in pieces_by_length(batch, self.max_tokens):
            self._add(piece)

    def _add(self, given: Batch) -> None:
        """The same in one pass."""
        passes = Passes(self.model, self.objective, Places(self.model, strict=False))
        batch, weights = (given, None) if self.relabel is None else self.relabel(given)
        with differentiating(self.model):
            with self._recorded() as calls:
                losses = passes.losses(batch)
            samples = len(losses)
            if samples > 1 and any(len(x) == 1 for _, x, _ in calls):  # samples share its output
                for i in range(samples):
                    self._add(slice_batch(given, i, i + 1))
                return
            total = losses.sum() if weights is None else losses @ weights.to(losses)
            grads = backward(total, [edge for _, _, edge in calls])
        for (module, x, _), g in zip(calls, grads, strict=True):
            if g is not None:
                self.add_call(module, x, g, samples)

    @property
    def modules(self) -> set[nn.Module]:
        """Those of all layers."""
        return {module for layer in self.layers.values() for module in layer.modules}

    @contextmanager
    def _recorded(self) -> Iterator[list[tuple[nn.Module, Tensor, GradientEdge]]]:
        """Notes the calls of the layers while it is open: input, and place of the output."""
        calls: list[tuple[nn.Module, Tensor, GradientEdge]] = []

        def record(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            x = only_tensor(args, kwargs)
            if x is None or not output.requires_grad:
                return None
            output = output.clone()  # before anything changes it in place
            calls.append((module, x.detach(), get_gradient_edge(output)))
            return output

        handles = [
            module.register_forward_hook(record, prepend=True, with_kwargs=True)
            for module in self.modules
        ]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def add_call(self, module: nn.Module, x: Tensor, g: Tensor, samples: int) -> None:
        """Adds one call's part to the blocks that have parameters of the module.

        Args:
            module: of a layer.
            x: its input.
            g: the gradient of the summed losses at its output.
            samples: how many losses there are.
        """
        leads = len(g) == samples
        x, g = positions(module, x.to(g.device), g)
        if not g.numel():
            return
        device = next(self.model.parameters()).device
        # Where samples do not lead, as with tokens of an expert, each position is by itself.
        counts = counting(g, samples if leads and len(g) % samples == 0 else len(g))
        x, g = x[counts].double(), g[counts].double()
        for block, layer in self.layers.items():
            if module in layer.modules:
                A, S = self.sums.get(block, (0, 0))
                gg, xx = ((f.mT @ f).to(device) for f in layer.factors(module, x, g))
                self.sums[block] = A + xx, S + gg


def counting(g: Tensor, samples: int) -> Tensor:
    """Where output gradients are more than rounding beside the largest of the same sample.

    Padding that no loss sees has none at all. What cancels, as in a query with a single key, may
    leave some rounding.

    Args:
        g: at every position (t, o), sample after sample.
        samples: how many there are.

    Returns:
        For each position whether it counts, (t,).
    """
    size = torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).reshape(samples, -1)
    # Narrower numbers have no room for what is dropped here beside what is not.
    dtype = torch.promote_types(g.dtype, torch.float32)
    noise = NOISE * torch.finfo(dtype).eps * size.amax(1, keepdim=True)
    return torch.gt(size, noise).flatten()


def positions(module: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (t, i), or patches of them, and output gradients (t, o), at every position.

    Args:
        module: a linear layer, whichever way its weight is stored, or a convolution without groups.
        x: its input.
        g: the gradient at its output.

    Returns:
        Both, sample after sample.
    """
    if isinstance(module, nn.Linear) or is_transposed(module):
        return x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    space = len(module.kernel_size)
    x, g = (t if t.ndim == space + 2 else t.unsqueeze(0) for t in (x, g))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis in range(space):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, module.stride[axis])[..., :: module.dilation[axis]]
    x = x.movedim(1, 1 + space)  # behind the places: channels, then the kernel's extents
    return x.reshape(-1, x[(0,) * (1 + space)].numel()), g.movedim(1, -1).reshape(-1, g.shape[1])
