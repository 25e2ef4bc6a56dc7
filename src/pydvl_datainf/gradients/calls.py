"""One call of a layer, and the rows that follow from it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils import _pytree as pytree

from pydvl_datainf.gradients.layers import Layer
from pydvl_datainf.gradients.rules import module_rows

Rows: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: its arguments and the place of its output in the graph.

    Args:
        layer: that was called.
        names: of its parameters in the model.
        args: positional arguments, tensors detached.
        kwargs: arguments by name, tensors detached.
        length: B, the number of samples.
        each: entries along the first dimension that belong to each sample, one sample after the
            other: 1, or more where samples and positions were joined in one dimension.
        pattern: which of the arguments lead with the samples, and which are common to them.
        is_picked: whether the input was picked out of a tensor by numbers or by a mask, so that
            data decides which sample a row belongs to.
        edge: of the output.
        place: of the output in what the layer returned, a tuple; None = it returned the output.
    """

    layer: Layer
    names: Collection[str]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    length: int
    each: int
    pattern: tuple[bool, ...]
    is_picked: bool
    edge: GradientEdge
    place: int | None = None

    def rows(self, g: Tensor, dtype: torch.dtype) -> Rows:
        """What this call adds to the rows of the layer's parameters.

        Args:
            g: the gradient at the output, (B·each, ...).
            dtype: of the rows.

        Returns:
            For each parameter, by its name in the model, rows (B, *shape); none where the layer's
            rules do not fit this call, or it has none and cannot be called for one sample.

        Raises:
            OutOfMemoryError: if the device has too little memory.
        """
        module, owned, rules = self.layer.module, self.layer.owned, self.layer.rules
        try:
            if rules is None:
                return self._mapped_rows(g, dtype)
            (x,) = (*self.args, *self.kwargs.values())  # other calls are not recorded
            # What moves a layer's input to its device does so behind this hook.
            x, g = x.to(g.device), g.to(dtype)
            x = x.to(dtype) if x.is_floating_point() else x
            if self.each > 1:
                x, g = self._by_sample(x), self._by_sample(g)
            return {name: rules[local](module, x, g) for local, name in owned.items()}
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever a layer of the caller's may raise for one sample
            return {}

    def _mapped_rows(self, g: Tensor, dtype: torch.dtype) -> Rows:
        """The rows of a layer without rules, whose call is mapped over the samples."""
        owned = self.layer.owned
        given = pytree.tree_map_only(
            Tensor, lambda t: t.to(g.device), (self.args, dict(self.kwargs))
        )
        args, kwargs = pytree.tree_map(self._by_sample, given)
        with torch.no_grad():  # by the parameters of modules inside
            g = self._by_sample(g)
            new = module_rows(self.layer.module, args, kwargs, g, owned, self.place)
        return {owned[local]: rows.to(dtype) for local, rows in new.items()}

    def _by_sample(self, value: Any) -> Any:
        """A tensor that leads with the samples as (B, each, ...); anything else as it is."""
        if not leads(value, self.length * self.each):
            return value
        return value.reshape(self.length, self.each, *value.shape[1:])


def only_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input of a call with one tensor and nothing else, otherwise None."""
    inputs = (*args, *kwargs.values())
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Tensor) else None


def leads(value: Any, *shape: int) -> TypeGuard[Tensor]:
    """Whether it is a tensor whose shape begins so."""
    return isinstance(value, Tensor) and value.shape[: len(shape)] == shape
