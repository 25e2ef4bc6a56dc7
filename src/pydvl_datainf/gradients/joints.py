"""Parameters that are common to all samples until something of each sample is joined to them.

Learned positions, relative biases and tuned prompts have no dimension for samples: they are added
to what has one, multiplied by it, or repeated. There the graph behind the losses has one gradient
for each sample, which plain autograd sums before it goes on to the parameter. Here it goes on by
itself.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from pydvl_datainf.gradients.paths import edges_of, is_picked

_NEAR = 32  # operations between a parameter and its joints

_FACTORS: Mapping[str, tuple[Callable[[Any], Tensor | None], ...]] = {
    "AddBackward0": (lambda node: None, lambda node: None),
    "ExpandBackward0": (lambda node: None,),
    "MulBackward0": (lambda node: node._saved_other, lambda node: node._saved_self),
    "RepeatBackward0": (lambda node: None,),
    "WhereBackward0": (lambda node: node._saved_condition, lambda node: ~node._saved_condition),
}
"""For each operation that joins what each of its places is multiplied by."""


@dataclass(frozen=True, slots=True)
class Joint:
    """An operation that joins what follows from a parameter to what each sample has of its own.

    With h the gradient at what the operation returns, times what it multiplied by (or the mask by
    which it chose), and J the derivative of what is common by the parameter, the row of sample i is
    Jᵀ Σ h_i, summed over the dimensions along which it was repeated.

    Args:
        name: of the parameter.
        parameter: itself.
        common: the place in the graph of what is common to all samples; None = the parameter.
        shape: of what is common.
        edge: of what the operation returns.
        each: its entries along the first dimension that belong to each sample in turn.
        factor: what it multiplied by; None = nothing.
        pattern: what else tells it from other operations.
        is_picked: whether data decides which sample a row belongs to.
    """

    name: str
    parameter: nn.Parameter
    common: GradientEdge | None
    shape: tuple[int, ...]
    edge: GradientEdge
    each: int
    factor: Tensor | None
    pattern: tuple[Any, ...]
    is_picked: bool

    @property
    def names(self) -> tuple[str, ...]:
        """That of the parameter."""
        return (self.name,)

    def rows(self, g: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """What this operation adds to the rows of the parameter.

        Args:
            g: the gradient at what it returns, (B·each, ...).
            dtype: of the rows.

        Returns:
            Rows (B, *shape) by the name of the parameter; none where vmap refuses an operation.

        Raises:
            OutOfMemoryError: if the device has too little memory.
        """
        h = g if self.factor is None else g * self.factor
        length = len(h) // self.each
        h = h.reshape(length, self.each, *h.shape[1:])
        lacking = h.ndim - 1 - len(self.shape)
        h = h.sum_to_size(length, *(1,) * lacking, *self.shape).reshape(length, *self.shape)
        if self.common is None:
            return {self.name: h.to(dtype)}
        try:
            (h,) = torch.autograd.grad(
                (self.common,), (self.parameter,), (h,), is_grads_batched=True, retain_graph=True
            )
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an operation of the caller's may raise under vmap
            return {}
        return {self.name: h.to(dtype)}


def joints_of(
    losses: Tensor, parameters: Mapping[str, nn.Parameter], length: int
) -> dict[str, list[Joint]]:
    """The joints of parameters that reach the losses through joints alone.

    Args:
        losses: one per sample, with a graph.
        parameters: by name.
        length: B, the number of samples.

    Returns:
        For each of those parameters its joints, for one that takes no part none.
    """
    users: dict[Any, list[tuple[Any, int]]] = {}
    leaves: dict[int, Any] = {}
    for node, parent in edges_of(losses):
        places = [i for i, (to, _) in enumerate(node.next_functions) if to is parent]
        users.setdefault(parent, []).extend((node, i) for i in places)
        if hasattr(parent, "variable"):
            leaves[id(parent.variable)] = parent
    found = {}
    for name, p in parameters.items():
        leaf = leaves.get(id(p))
        joints = [] if leaf is None else _joints(name, p, leaf, users, length)
        if joints is not None:
            found[name] = joints
    return found


def uneven(joints: Collection[Joint], losses: Tensor) -> set[str]:
    """Whose joints have another number of rows for each sample in another batch.

    Args:
        joints: of one batch.
        losses: of another, with a graph.

    Returns:
        The names of those parameters.
    """
    parameters = {joint.name: joint.parameter for joint in joints}
    again = joints_of(losses, parameters, len(losses)) if joints else {}
    numbers = {n: {joint.each for joint in joints if joint.name == n} for n in parameters}
    return {n for n, each in numbers.items() if {j.each for j in again.get(n, ())} != each}


def _joints(
    name: str,
    p: nn.Parameter,
    leaf: Any,
    users: Mapping[Any, Iterable[tuple[Any, int]]],
    length: int,
) -> list[Joint] | None:
    """The joints of a parameter; None where a way to the losses has none close to it."""
    joints, pending, seen = [], [leaf], {leaf}
    while pending:
        node = pending.pop()
        if node not in users:
            return None  # the losses themselves
        for user, place in set(users[node]):
            joint = _joint(name, p, user, place, length)
            if joint is not None:
                joints.append(joint)
            elif user not in seen:
                seen.add(user)
                pending.append(user)
        if len(seen) > _NEAR:
            return None
    return joints


def _joint(name: str, p: nn.Parameter, node: Any, place: int, length: int) -> Joint | None:
    """The joint of what an operation takes in one of its places, if it is one."""
    kind, (origin, number) = node.name(), node.next_functions[place]
    if kind not in _FACTORS:
        return None
    is_leaf = hasattr(origin, "variable")
    shape = tuple(p.shape if is_leaf else origin._input_metadata[number].shape)
    out = tuple(node._input_metadata[0].shape)
    each, rest = divmod(out[0], length) if out else (0, 1)
    repeated = len(shape) < len(out) or shape[:1] == (1,)
    if rest or not each or not repeated or (kind == "AddBackward0" and node._saved_alpha != 1):
        return None
    own = shape if len(shape) < len(out) else shape[1:]
    if kind == "RepeatBackward0" and out[1:] != own:
        return None
    saved = _FACTORS[kind][place](node)
    factor = None if saved is None else saved.detach()
    common = None if is_leaf else GradientEdge(origin, number)
    pattern = (kind, place, len(out), len(shape))
    edge = GradientEdge(node, 0)
    return Joint(name, p, common, shape, edge, each, factor, pattern, is_picked(node))
