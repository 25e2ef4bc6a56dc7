"""From a layer's input and the gradient at its output to the gradient of each sample.

One small function for each kind of parameter. All take the module, its input `x` and the gradient
`g` of the summed losses at its output, both with the samples along the first dimension, and return
one gradient a sample, shape (B, *shape of the parameter). Sums run over positions within a sample,
never over samples.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from torch.nn import grad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

_CONV_WEIGHT: Mapping[int, Callable[..., Tensor]] = {
    3: grad.conv1d_weight,
    4: grad.conv2d_weight,
    5: grad.conv3d_weight,
}

Rule: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]


def linear_weight(
    module: nn.Module, x: Float[Tensor, "B *T i"], g: Float[Tensor, "B *T o"]
) -> Float[Tensor, "B o i"]:
    """Σ_t g_t x_tᵀ, for any number of dimensions T between the samples and the features."""
    length = x.shape[0]
    x, g = x.reshape(length, -1, x.shape[-1]), g.reshape(length, -1, g.shape[-1])
    return torch.einsum("bto,bti->boi", g, x)


def linear_bias(
    module: nn.Module, x: Float[Tensor, "B *T i"], g: Float[Tensor, "B *T o"]
) -> Float[Tensor, "B o"]:
    """Σ_t g_t."""
    return g.reshape(g.shape[0], -1, g.shape[-1]).sum(1)


def transposed_weight(
    module: nn.Module, x: Float[Tensor, "B *T i"], g: Float[Tensor, "B *T o"]
) -> Float[Tensor, "B i o"]:
    """Σ_t x_t g_tᵀ, of a linear layer whose weight is stored as (inputs, outputs)."""
    return linear_weight(module, g, x)


def embedding_weight(
    module: nn.Embedding, x: Int[Tensor, "B *T"], g: Float[Tensor, "B *T e"]
) -> Float[Tensor, "B v e"]:
    """Row k is the sum of the g_t with x_t = k; the padding index gets none."""
    length, (v, e) = x.shape[0], module.weight.shape
    index, g = x.reshape(length, -1), g.reshape(length, -1, e)
    if module.padding_idx is not None:
        g = g * (index != module.padding_idx).unsqueeze(-1)
    rows = g.new_zeros(length, v, e)
    return rows.scatter_add_(1, index.unsqueeze(-1).expand(-1, -1, e).long(), g)


def conv_weight(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    x: Float[Tensor, "B c *space"],
    g: Float[Tensor, "B o *out"],
) -> Float[Tensor, "B o c_group *kernel"]:
    """The weight gradient of a convolution with B times the groups, so that samples stay apart."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    (length, o), weight = g.shape[:2], module.weight.shape
    rows = _CONV_WEIGHT[x.ndim](
        x.reshape(1, -1, *x.shape[2:]),
        (length * o, *weight[1:]),
        g.reshape(1, -1, *g.shape[2:]),
        stride=module.stride,
        dilation=module.dilation,
        groups=length * module.groups,
    )
    return rows.reshape(length, *weight)


def channel_sum(
    module: nn.Module, x: Float[Tensor, "B c *space"], g: Float[Tensor, "B o *out"]
) -> Float[Tensor, "B o"]:
    """Σ over space of g: the bias of convolutions and of norms over channels."""
    return g.reshape(*g.shape[:2], -1).sum(2)


def group_norm_weight(
    module: nn.GroupNorm, x: Float[Tensor, "B c *space"], g: Float[Tensor, "B c *space"]
) -> Float[Tensor, "B c"]:
    """Σ over space of g x̂, with x̂ the input normalised within groups of channels."""
    return channel_sum(module, x, g * F.group_norm(x, module.num_groups, eps=module.eps))


def batch_norm_weight(
    module: _BatchNorm, x: Float[Tensor, "B c *space"], g: Float[Tensor, "B c *space"]
) -> Float[Tensor, "B c"]:
    """Σ over space of g x̂, with x̂ the input normalised by the running statistics."""
    mean, var = (module.get_buffer(f"running_{name}").to(x.dtype) for name in ("mean", "var"))
    return channel_sum(module, x, g * F.batch_norm(x, mean, var, eps=module.eps))


def layer_norm_weight(
    module: nn.LayerNorm, x: Float[Tensor, "B *T"], g: Float[Tensor, "B *T"]
) -> Float[Tensor, "B *shape"]:
    """Σ over leading positions of g x̂, with x̂ the input of mean 0 and variance 1."""
    normalised = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return layer_norm_bias(module, x, g * normalised)


def layer_norm_bias(
    module: nn.LayerNorm | nn.RMSNorm, x: Float[Tensor, "B *T"], g: Float[Tensor, "B *T"]
) -> Float[Tensor, "B *shape"]:
    """Σ over leading positions of g."""
    return g.reshape(g.shape[0], -1, *module.normalized_shape).sum(1)


def rms_norm_weight(
    module: nn.RMSNorm, x: Float[Tensor, "B *T"], g: Float[Tensor, "B *T"]
) -> Float[Tensor, "B *shape"]:
    """Σ over leading positions of g x̂, with x̂ the input of root mean square 1."""
    eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
    return layer_norm_bias(module, x, g * F.rms_norm(x, module.normalized_shape, eps=eps))


_CONV: Mapping[str, Rule] = {"weight": conv_weight, "bias": channel_sum}
_BATCH_NORM: Mapping[str, Rule] = {"weight": batch_norm_weight, "bias": channel_sum}
RULES: Mapping[type[nn.Module], Mapping[str, Rule]] = {
    nn.Linear: {"weight": linear_weight, "bias": linear_bias},
    nn.Embedding: {"weight": embedding_weight},
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Conv3d: _CONV,
    nn.LayerNorm: {"weight": layer_norm_weight, "bias": layer_norm_bias},
    nn.GroupNorm: {"weight": group_norm_weight, "bias": channel_sum},
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.RMSNorm: {"weight": rms_norm_weight},
}
"""For each layer type the rule of each of its parameters."""

TRANSPOSED = "transformers.pytorch_utils.Conv1D"
"""The linear layer of GPT-2, by name, since transformers need not be installed."""

_OF_TRANSPOSED: Mapping[str, Rule] = {"weight": transposed_weight, "bias": linear_bias}

_ANY_POSITIONS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)


def takes_any_positions(module: nn.Module) -> bool:
    """Whether its rules take any number of dimensions between the samples and the features."""
    return isinstance(module, _ANY_POSITIONS) or is_transposed(module)


def rules_of(module: nn.Module, names: Iterable[str]) -> Mapping[str, Rule] | None:
    """The rules for a module's type, or for a base class whose forward it inherits unchanged.

    Args:
        module: that owns parameters, or has modules inside that do.
        names: of the parameters in the module.

    Returns:
        A rule for each of them, and perhaps others; None where not all have one.
    """
    for kind in type(module).__mro__:
        if kind in RULES and type(module).forward is kind.forward:  # type: ignore[attr-defined]
            frequency = getattr(module, "scale_grad_by_freq", False)  # counts over the whole batch
            return RULES[kind] if RULES[kind].keys() >= set(names) and not frequency else None
    return _OF_TRANSPOSED if is_transposed(module) and _OF_TRANSPOSED.keys() >= set(names) else None


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is stored as (inputs, outputs), as in GPT-2."""
    return any(
        f"{kind.__module__}.{kind.__qualname__}" == TRANSPOSED
        and type(module).forward is kind.forward  # type: ignore[attr-defined]
        for kind in type(module).__mro__
    )


def module_rows(
    module: nn.Module,
    args: Any,
    kwargs: Any,
    g: Tensor,
    names: Iterable[str],
    place: int | None = None,
) -> Mapping[str, Tensor]:
    """Gradients of any layer: its pullback, mapped over samples.

    What vmap refuses, such as experts that pick their tokens, is called sample by sample.

    Args:
        module: a layer without rules for the parameters.
        args: its positional arguments; tensors (B, k, ...) are those of the samples in turn, and
            all others are common to the samples.
        kwargs: its arguments by name, likewise.
        g: the gradient at the output, (B, k, ...).
        names: the parameters wanted, by their names in the module.
        place: of the output in what the module returns; None = it returns the output.

    Returns:
        For each name the gradients, shape (B, *shape).

    Raises:
        OutOfMemoryError: if the device has too little memory.
    """
    bare = _Unhooked(module)
    parameters = {f"module.{name}": module.get_parameter(name).detach() for name in names}
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.shape[:2] == g.shape[:2]
    ]

    def output(own: Iterable[Tensor], p: dict[str, Tensor]) -> Any:
        here = list(leaves)
        for i, leaf in zip(places, own, strict=True):
            here[i] = leaf
        args, kwargs = pytree.tree_unflatten(here, spec)
        outputs = functional_call(bare, p, args, kwargs)
        return outputs if place is None else outputs[place]

    def gradient(g: Tensor, *own: Tensor) -> dict[str, Tensor]:
        (rows,) = vjp(lambda p: output(own, p), parameters)[1](g)
        return cast(dict[str, Tensor], rows)

    mapped = [leaves[i] for i in places]
    try:
        rows = vmap(gradient)(g, *mapped)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a layer of the caller's may raise under vmap
        own = [p.requires_grad_() for p in parameters.values()]
        each = []
        with torch.enable_grad():
            for g_own, *inputs in zip(g, *mapped, strict=True):
                y = output(inputs, parameters)
                each.append(torch.autograd.grad(y, own, g_own, materialize_grads=True))
        rows = dict(zip(parameters, map(torch.stack, zip(*each, strict=True)), strict=True))
    return {name.removeprefix("module."): values for name, values in rows.items()}


class _Unhooked(nn.Module):
    """A module's forward without its hooks, which have seen this call already."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)
