"""Two pretend cards on a machine without any: `pretend.start()`, in a process of its own.

A tensor on a card is a wrapper around one of the CPU. To torch's core it is one of the CPU, so that
autograd, vmap and all kernels work; to Python its device is `cuda:0` or `cuda:1`. As on real cards,
tensors of several devices do not go together, NumPy takes none, and pickles remember the card.
"""

import threading

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

CARDS = 2
CPU = torch.device("cpu")
TRANSFERS = {"copy_", "_to_copy"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class OnCard(torch.Tensor):
    """A tensor that says that it is on a card."""

    @staticmethod
    def __new__(cls, inner, card):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.inner, made.card = inner.detach(), card
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", self.card))
    is_cuda = property(lambda self: True)

    def __repr__(self, **_):
        return f"{self.inner} on cuda:{self.card}"

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy.")

    __array__ = numpy

    def tolist(self):
        return self.inner.tolist()

    def __reduce_ex__(self, protocol):
        is_parameter = isinstance(self, torch.nn.Parameter)
        return _again, (self.inner, self.card, self.requires_grad, is_parameter)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        flat, spec = pytree.tree_flatten((args, kwargs or {}))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, OnCard)]
        _check_together(name, tensors)
        a, k = pytree.tree_unflatten([_inner(value) for value in flat], spec)
        out = func(*a, **k)
        if torch.Tag.inplace_view in func.tags:
            with no_dispatch():
                return func(*args, **kwargs or {})  # the wrapper's own shape, too
        known = {id(t.inner): t for t in ours}  # of operations in place
        card = ours[0].card
        return pytree.tree_map_only(
            torch.Tensor, lambda t: known[id(t)] if id(t) in known else OnCard(t, card), out
        )


def _inner(value):
    return value.inner if isinstance(value, OnCard) else value


def _again(inner, card, requires_grad, is_parameter):
    made = OnCard(inner, card)
    return torch.nn.Parameter(made, requires_grad) if is_parameter else made


def _check_together(name, tensors):
    """As on real cards: single numbers and indices of the CPU go with all others."""
    if name in TRANSFERS:
        return
    first = tensors[:1] if name in INDEXED else tensors
    rest = tensors[1:] if name in INDEXED else []
    places = {str(t.device) for t in first if t.ndim or isinstance(t, OnCard)}
    places |= {str(t.device) for t in rest if isinstance(t, OnCard)}
    if len(places) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, got {places} ({name})")


class _Moved(torch.autograd.Function):
    """The same numbers elsewhere; gradients go the way back."""

    @staticmethod
    def forward(tensor, device):
        inner = _inner(tensor).clone()
        return inner if device.type == "cpu" else OnCard(inner, device.index or 0)

    @staticmethod
    def setup_context(context, inputs, output):
        context.device = _device(inputs[0])

    @staticmethod
    def backward(context, grad):
        return _Moved.apply(grad, context.device), None

    @staticmethod
    def vmap(info, dims, tensor, device):
        return _Moved.apply(tensor, device), dims[0]


class Cards(TorchFunctionMode):
    """Makes and moves tensors, since torch's core has no cards."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _to(*args, **kwargs)
        if func is torch._C._nn._parse_to:  # of a mode within this one
            return func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return _to(args[0], CPU)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            made = func(*args, **kwargs | {"device": CPU})
            return (
                made if isinstance(made, OnCard) else OnCard(made, torch.device(device).index or 0)
            )
        return func(*args, **kwargs)


def _to(tensor, *args, **kwargs):
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    if args and isinstance(args[0], torch.Tensor):
        device, dtype = args[0].device, args[0].dtype
    if device is not None and _place(device) != _place(_device(tensor)):
        tensor = _Moved.apply(tensor, device)
    return tensor if dtype is None else torch._C.TensorBase.to(tensor, dtype)


def _device(tensor):
    """Also of what vmap and grad wrap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.device


def _place(device):
    return device.type, (device.index or 0) if device.type == "cuda" else None


def start():
    """From now on this process has cards."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects
    for name, value in {
        "is_available": True,
        "device_count": CARDS,
        "mem_get_info": (2**30, 2**31),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "get_rng_state": torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": None,
    }.items():
        setattr(torch.cuda, name, lambda *_, value=value: value)
    torch.backends.cudnn.is_acceptable = lambda tensor: False
    Cards().__enter__()
    threading.Thread.run = _with_cards(threading.Thread.run)


def _with_cards(run):
    """Modes are those of a thread; cards are those of all."""

    def run_with_cards(thread):
        with Cards():
            run(thread)

    return run_with_cards
