"""The path that a forward pass took, as far as the graph behind its losses shows it."""

from collections import Counter
from collections.abc import Iterable, Mapping
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

    Raises:
        ModelError: if a part is checkpointed in the re-entrant form: parameters in it would have no
            gradient, which is zeros without an error.
    """
    names = {id(p): name for name, p in parameters.items()}
    steps: set[tuple[Any, ...]] = set()
    uses: Counter[str] = Counter()
    nodes: list[Any] = [losses.grad_fn]
    seen = {losses.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        kind = node.name()
        if "CheckpointFunction" in kind:
            raise ModelError(REENTRANT)
        for parent, _ in node.next_functions:
            if parent is None:
                continue
            step = parent.name()
            if step == _LEAF:
                step = names.get(id(parent.variable), step)
                uses[step] += 1
            steps.add((kind, step))
            if parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    listed = list(calls)
    called = Counter(name for name, _ in listed)
    # How often a layer is called is no other path, but that it is used without being called is.
    steps |= {
        (name, uses[name] / called[name] if called[name] else -uses[name])
        for name in names.values()
    }
    return frozenset(steps | set(listed))
