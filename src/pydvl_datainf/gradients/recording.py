"""Watching a forward pass: for each layer its input, and the place of its output in the graph."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from pydvl_datainf.gradients.calls import Call, leads, only_tensor
from pydvl_datainf.gradients.layers import Layer
from pydvl_datainf.gradients.paths import is_picked
from pydvl_datainf.gradients.rules import takes_any_positions

_PLAIN = (Tensor, bool, int, float, str, NoneType)


@dataclass(slots=True)
class Recording:
    """How a forward pass is watched, and what it left behind.

    Args:
        length: B, the number of samples in the batch.
        copied: modules whose outputs are copied before anything else can change them in place.
        repeats: repeat an input of leading size 1 for all samples, as position embeddings need.
        watch: keep outputs, to see in-place changes.
        calls: of layers whose parameters they may explain.
        unexplained: parameters of which a call cannot be explained.
        outputs: what was kept, with the number of its changes in place until then.
    """

    length: int
    copied: Collection[nn.Module] = ()
    repeats: bool = True
    watch: bool = False
    calls: list[Call] = field(default_factory=list)
    unexplained: set[str] = field(default_factory=set)
    outputs: list[tuple[nn.Module, Tensor, int]] = field(default_factory=list)

    @property
    def lost(self) -> set[nn.Module]:
        """Layers whose outputs, views, were cut out of the graph by a later in-place operation."""
        return {m for m, y, version in self.outputs if y._is_view() and y._version != version}

    @contextmanager
    def of(self, layers: Iterable[Layer]) -> Iterator[None]:
        """Records the calls of layers while it is open; their own hooks stay in place.

        Args:
            layers: what is watched.

        Yields:
            Nothing.
        """
        handles = []
        try:
            for layer in layers:
                module, hook = layer.module, partial(self._record, layer)
                handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
                if self.repeats and self.length > 1:
                    handles.append(module.register_forward_pre_hook(self._repeat, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _repeat(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """A forward pre-hook that repeats an input of leading size 1 for all samples."""
        x = only_tensor(args, kwargs)
        if x is None or x.shape[:1] != (1,):
            return None
        repeated = x.expand(self.length, *x.shape[1:])
        return ((repeated,), {}) if args else ((), dict.fromkeys(kwargs, repeated))

    def _record(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """A forward hook that notes a call of `layer`, or that it cannot be explained."""
        outputs = _tensors(output)
        seen = {place: y for place, y in (outputs or {}).items() if y.requires_grad}
        if outputs is not None and not seen:
            return None  # a call without a graph adds nothing to the gradient
        x = only_tensor(args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs)) if x is None else [x]
        each = _each(layer, x, leaves, outputs, self.length) if outputs else 0
        if not each:
            self.unexplained |= set(layer.owned.values())
            return None
        pattern = tuple(leads(v, self.length * each) or leads(v, self.length, each) for v in leaves)
        picked = any(is_picked(v.grad_fn) for v in leaves if isinstance(v, Tensor) and v.grad_fn)
        if x is None:
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        else:  # the same, far faster
            args, kwargs = (x.detach(),) if args else (), dict.fromkeys(kwargs, x.detach())
        names = layer.owned.values()
        call = partial(Call, layer, names, args, kwargs, self.length, each, pattern, picked)
        # One output of several may follow from another, whose gradient would count it again.
        is_copied = module in self.copied or len(seen) > 1
        for place, y in seen.items():
            if self.watch:
                self.outputs.append((module, y, y._version))
            seen[place] = y.clone() if is_copied else y
            # The edge, not the tensor: after an in-place operation the tensor is another function.
            self.calls.append(call(get_gradient_edge(seen[place]), place))
        if isinstance(output, Tensor):
            return seen[None]
        return type(output)(seen.get(i, y) for i, y in enumerate(output))


def _tensors(output: Any) -> dict[int | None, Tensor] | None:
    """The tensors that a module returned, by place; None where it returned what is neither."""
    if isinstance(output, Tensor):
        return {None: output}
    if type(output) not in (tuple, list) or not all(isinstance(y, _PLAIN) for y in output):
        return None
    return {i: y for i, y in enumerate(output) if isinstance(y, Tensor)}


def _each(
    layer: Layer,
    x: Tensor | None,
    leaves: Iterable[Any],
    outputs: Mapping[int | None, Tensor],
    length: int,
) -> int:
    """How many rows each sample has in a call that can be explained, otherwise 0."""
    # That the rows belong to the samples in turn, comparison with plain autograd will show.
    sizes = {len(y) if y.ndim else 0 for y in outputs.values() if y.requires_grad}
    size = sizes.pop()
    each, rest = divmod(size, length)
    if sizes or rest:
        return 0
    if layer.rules is None:  # the call is mapped over samples
        plain = all(isinstance(leaf, _PLAIN) for leaf in leaves)
        return each if plain and any(leads(leaf, size) for leaf in leaves) else 0
    fits = each == 1 or takes_any_positions(layer.module)
    return each if fits and outputs.keys() == {None} and leads(x, size) else 0


@contextmanager
def row_counts(layers: Iterable[Layer]) -> Iterator[Mapping[nn.Module, set[int]]]:
    """Notes how many rows the outputs of layers have, while the context is open.

    Args:
        layers: what is watched.

    Yields:
        For each module the numbers, empty where it was not called.
    """
    counts: dict[nn.Module, set[int]] = {layer.module: set() for layer in layers}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        counts[module] |= {len(y) for y in (_tensors(output) or {}).values() if y.requires_grad}

    handles = [module.register_forward_hook(count) for module in counts]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
