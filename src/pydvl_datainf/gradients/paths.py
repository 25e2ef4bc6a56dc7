"""The path that a forward pass took, as far as the graph behind its losses shows it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from pydvl_datainf.errors import ModelError

Path: TypeAlias = frozenset[tuple[Any, ...]]

REENTRANT = (
    "Activation checkpointing in its re-entrant form hides the graph. Switch it off (in "
    "transformers, model.eval() is enough), or use use_reentrant=False."
)
_LEAF = "torch::autograd::AccumulateGrad"


def path_of(
    losses: Tensor,
    parameters: Mapping[str, nn.Parameter],
    calls: Iterable[tuple[str, Any]] = (),
) -> Path:
    """Which operations followed which, and how parameters entered.

    Two passes with the same path differ in numbers and sizes alone, or in how often the same steps
    were repeated: an operation that mixes samples only for some data is a step of its own, and so
    is a parameter that is used for the first time, or otherwise than by calling its layer.

    Args:
        losses: one per sample, (B,), with a graph.
        parameters: those whose uses are told apart.
        calls: for each call of a layer the names of its parameters, each with what else about the
            call makes it another one.

    Returns:
        The steps, in no order.
    """
    names = {id(p): name for name, p in parameters.items()}
    steps: set[tuple[Any, ...]] = set()
    uses: Counter[str] = Counter()
    for node, parent in edges_of(losses):
        kind, step = node.name(), parent.name()
        if step == _LEAF:
            step = names.get(id(parent.variable), step)
            uses[step] += 1
        steps.add((kind, step))
    listed = list(calls)
    called = Counter(name for name, _ in listed)
    # How often a layer is called is no other path, but that it is used without being called is.
    steps |= {
        (name, uses[name] / called[name] if called[name] else -uses[name])
        for name in names.values()
    }
    return frozenset(steps | set(listed))


def used_in(losses: Tensor, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of those parameters that losses depend on."""
    leaves = {id(node.variable) for _, node in edges_of(losses) if node.name() == _LEAF}
    return {name for name, p in parameters.items() if id(p) in leaves}


def edges_of(losses: Tensor) -> Iterator[tuple[Any, Any]]:
    """Walks the graph behind losses.

    Args:
        losses: one per sample, (B,), with a graph.

    Yields:
        Each node with each that it passes gradients to.

    Raises:
        ModelError: if a part is checkpointed in the re-entrant form: parameters in it would have no
            gradient, which is zeros without an error.
    """
    nodes: list[Any] = [losses.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if "CheckpointFunction" in node.name():
            raise ModelError(REENTRANT)
        for parent, _ in node.next_functions:
            if parent is None:
                continue
            yield node, parent
            if parent not in seen:
                seen.add(parent)
                nodes.append(parent)


_NEAR = 16  # operations
_PICKING = ("IndexBackward", "IndexSelectBackward", "GatherBackward", "MaskedSelectBackward")


def is_picked(node: Any) -> bool:
    """Whether what an operation returns comes, within a few others, from one that picks rows."""
    nodes = [node]
    for node in filter(None, nodes):
        if node.name().startswith(_PICKING) and _picks_rows(node):
            return True
        if len(nodes) < _NEAR:
            nodes += [parent for parent, _ in node.next_functions]
    return False


def _picks_rows(node: Any) -> bool:
    """Whether an operation takes entries along the first dimension, by numbers or by a mask."""
    kind, ((origin, _), *_) = node.name(), node.next_functions or ((None, 0),)
    if origin is not None and hasattr(origin, "variable"):
        return False  # a table of parameters, by positions
    if kind.startswith("IndexBackward"):
        return node._saved_indices[0] is not None
    return kind.startswith("MaskedSelect") or bool(node._saved_dim == 0)
