"""Watching a forward pass: for each layer its input, and the place of its output in the graph."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from pydvl_datainf.gradients.rules import ANY_POSITIONS, Rule, module_rows, rules_of

Rows: TypeAlias = dict[str, Tensor]

_PLAIN = (Tensor, bool, int, float, str, NoneType)


@dataclass(frozen=True, slots=True)
class Layer:
    """A module and parameters of it, or of modules inside it: local name -> name in the model."""

    module: nn.Module
    owned: Mapping[str, str]

    @property
    def rules(self) -> Mapping[str, Rule] | None:
        """The rules for all of the parameters; None where the module is mapped over samples."""
        known = rules_of(self.module)
        return known if known is not None and set(self.owned) <= set(known) else None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: its arguments and the place of its output in the graph.

    Args:
        layer: that was called.
        args: positional arguments, tensors detached.
        kwargs: arguments by name, tensors detached.
        length: B, the number of samples.
        each: entries along the first dimension that belong to each sample, one sample after the
            other: 1, or more where samples and positions were joined in one dimension.
        edge: of the output.
        is_picked: whether the input was picked out of a tensor by numbers or by a mask, so that
            data decides which sample a row belongs to.
        place: of the output in what the layer returned, a tuple; None = it returned the output.
    """

    layer: Layer
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    length: int
    each: int
    edge: GradientEdge
    is_picked: bool
    place: int | None = None

    @property
    def names(self) -> Collection[str]:
        """The names of the parameters in the model."""
        return self.layer.owned.values()

    @property
    def pattern(self) -> tuple[bool, ...]:
        """Which of the arguments lead with the samples, and which are common to them."""
        return tuple(
            _leads(leaf, self.length * self.each) or _starts(leaf, (self.length, self.each))
            for leaf in pytree.tree_leaves((self.args, dict(self.kwargs)))
        )

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
                args, kwargs = pytree.tree_map(self._by_sample, (self.args, dict(self.kwargs)))
                with torch.no_grad():  # by the parameters of modules inside
                    g = self._by_sample(g)
                    new = module_rows(module, args, kwargs, g, owned, self.place)
                return {owned[local]: rows.to(dtype) for local, rows in new.items()}
            x = only_tensor(self.args, self.kwargs)
            assert x is not None  # other calls are not recorded
            x = x.to(dtype) if x.is_floating_point() else x
            g = g.to(dtype)
            if self.each > 1:
                x, g = self._by_sample(x), self._by_sample(g)
            return {name: rules[local](module, x, g) for local, name in owned.items()}
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever a layer of the caller's may raise for one sample
            return {}

    def _by_sample(self, value: Any) -> Any:
        """A tensor that leads with the samples as (B, each, ...); anything else as it is."""
        if not _leads(value, self.length * self.each):
            return value
        return value.reshape(self.length, self.each, *value.shape[1:])


@dataclass(slots=True)
class Recording:
    """What one forward pass left behind; with `watch` also its outputs, to see in-place changes."""

    watch: bool = False
    calls: list[Call] = field(default_factory=list)
    unexplained: set[str] = field(default_factory=set)
    outputs: list[tuple[nn.Module, Tensor, int]] = field(default_factory=list)

    @property
    def lost(self) -> set[nn.Module]:
        """Layers whose outputs, views, were cut out of the graph by a later in-place operation."""
        return {m for m, y, version in self.outputs if y._is_view() and y._version != version}


def layers_of(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], around: Mapping[str, str]
) -> list[Layer]:
    """The modules at which parameters are watched.

    Args:
        model: that is watched.
        parameters: by their names in the model.
        around: for some of them the path of a module around the one that owns them.

    Returns:
        Those modules, and for all other parameters the modules that directly own them; tied ones
        have several owners.
    """
    names = {id(p): name for name, p in parameters.items() if name not in around}
    layers = []
    for module in model.modules():
        own = {n: p for n, p in module._parameters.items() if p is not None and id(p) in names}
        if not own:
            continue
        # What a module shares with one inside it, such as an output layer's bias, is the latter's.
        inner = {id(p) for child in module.children() for p in child.parameters()}
        owned = {local: names[id(p)] for local, p in own.items() if id(p) not in inner}
        if owned:
            layers.append(Layer(module, owned))
    inside: dict[str, dict[str, str]] = {}
    for name, path in around.items():
        if name in parameters:
            inside.setdefault(path, {})[name.removeprefix(f"{path}.")] = name
    return layers + [Layer(model.get_submodule(path), owned) for path, owned in inside.items()]


_LEVELS = 2


def next_around(model: nn.Module, name: str, path: str | None) -> str | None:
    """The path of the next larger module at which a parameter may be watched.

    Args:
        model: that has the parameter.
        name: of the parameter.
        path: of the module at which it is watched; None = that which owns it.

    Returns:
        The path of the module around that; None where that is the model itself, or too large: the
        whole of a module is mapped over samples to differentiate one of its parameters.
    """
    owner = name.rpartition(".")[0]
    steps = [owner[:i] for i, letter in enumerate(owner) if letter == "."][::-1]
    modules = (nn.Module.forward, None)
    called = [s for s in steps if type(model.get_submodule(s)).forward not in modules][:_LEVELS]
    later = called[called.index(path) + 1 :] if path else called
    return later[0] if later else None


@contextmanager
def recorded(
    recording: Recording,
    layers: Collection[Layer],
    length: int,
    *,
    copied: Collection[nn.Module] = (),
    expand: bool = True,
) -> Iterator[None]:
    """Records the calls of layers while the context is open; their own hooks stay in place.

    Args:
        recording: filled with the calls.
        layers: what is watched.
        length: B, the number of samples in the batch.
        copied: modules whose outputs are copied before anything else can change them in place.
        expand: repeat an input of leading size 1 for all samples, as position embeddings need.

    Yields:
        Nothing.
    """
    handles = []
    try:
        for layer in layers:
            hook = _recorder(recording, layer, length, copied)
            handles.append(layer.module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            if expand and length > 1:
                pre_hook = _expander(length)
                handles.append(layer.module.register_forward_pre_hook(pre_hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorder(
    recording: Recording, layer: Layer, length: int, copied: Collection[nn.Module]
) -> Callable[..., Any]:
    """A forward hook that notes a call of `layer`, or that it cannot be explained."""

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        outputs = _tensors(output)
        if outputs is not None and not any(y.requires_grad for y in outputs.values()):
            return None  # a call without a graph adds nothing to the gradient
        if outputs is None or not _is_explained(layer, args, kwargs, outputs, length):
            recording.unexplained |= set(layer.owned.values())
            return None
        leaves = pytree.tree_leaves((args, kwargs))
        picked = any(is_picked(x.grad_fn) for x in leaves if isinstance(x, Tensor))
        args, kwargs = pytree.tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs))
        differentiable = [(place, y) for place, y in outputs.items() if y.requires_grad]
        # One output of several may follow from another, whose gradient would count it again.
        is_copied = module in copied or len(differentiable) > 1
        for place, y in differentiable:
            if recording.watch:
                recording.outputs.append((module, y, y._version))
            outputs[place] = seen = y.clone() if is_copied else y
            # The edge, not the tensor: after an in-place operation the tensor is another function.
            edge, each = get_gradient_edge(seen), len(y) // length
            recording.calls.append(Call(layer, args, kwargs, length, each, edge, picked, place))
        if isinstance(output, Tensor):
            return outputs[None]
        return type(output)(outputs.get(i, y) for i, y in enumerate(output))

    return record


def _tensors(output: Any) -> dict[int | None, Tensor] | None:
    """The tensors that a module returned, by place; None where it returned what is neither."""
    if isinstance(output, Tensor):
        return {None: output}
    if type(output) not in (tuple, list) or not all(isinstance(y, _PLAIN) for y in output):
        return None
    return {i: y for i, y in enumerate(output) if isinstance(y, Tensor)}


def _is_explained(
    layer: Layer, args: Any, kwargs: Any, outputs: Mapping[int | None, Tensor], length: int
) -> bool:
    """Whether rules know all parameters of a layer, or its call may be mapped over samples."""
    # That the rows belong to the samples in turn, comparison with plain autograd will show.
    sizes = {len(y) if y.ndim else 0 for y in outputs.values() if y.requires_grad}
    size = sizes.pop()
    if sizes or size == 0 or size % length:
        return False
    if layer.rules is None:
        leaves = pytree.tree_leaves((args, kwargs))
        plain = all(isinstance(leaf, _PLAIN) for leaf in leaves)
        return plain and any(_leads(leaf, size) for leaf in leaves)
    fits = size == length or isinstance(layer.module, ANY_POSITIONS)
    return fits and set(outputs) == {None} and _leads(only_tensor(args, kwargs), size)


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


def _expander(length: int) -> Callable[..., Any]:
    """A forward pre-hook that repeats an input of leading size 1 for all samples of the batch."""

    def expand(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        x = only_tensor(args, kwargs)
        if x is None or not _leads(x, 1):
            return None
        repeated = x.expand(length, *x.shape[1:])
        return ((repeated,), {}) if args else ((), dict.fromkeys(kwargs, repeated))

    return expand


def only_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input of a call with one tensor and nothing else, otherwise None."""
    inputs = (*args, *kwargs.values())
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Tensor) else None


_NEAR = 16  # operations


def is_picked(node: Any) -> bool:
    """Whether what an operation returns comes, within a few others, from one that picks rows."""
    nodes = [node]
    for node in filter(None, nodes):
        if _picks_rows(node):
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
    if kind.startswith(("IndexSelectBackward", "GatherBackward")):
        return bool(node._saved_dim == 0)
    return bool(kind.startswith("MaskedSelectBackward"))


def _starts(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.shape[: len(shape)] == shape


def _leads(tensor: Any, length: int) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.shape[:1] == (length,)
