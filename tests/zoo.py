"""Small models with their batches and losses, one for each thing that can happen to a gradient."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A model builder, a builder of (x, y) batches of a given length, and a pyDVL-style loss."""

    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    loss: Any = F.mse_loss
    per_sample: frozenset[str] = frozenset()  # parameters that capture leaves to single passes


class Flat(nn.Module):
    """Layers in a row, everything but the samples flattened at the end."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).flatten(1)


class Gate(nn.Module):
    """Parameters without dimensions, one of them not used."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.inner(x) * self.scale.exp()


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's, which is called twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        h = self.hidden(torch.tanh(self.hidden(self.embedding(x))))
        return self.out(h).mean(1)


class Positions(nn.Module):
    """Position embeddings, looked up once for the whole batch."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(6, 4), nn.Embedding(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        positions = torch.arange(x.shape[1]).unsqueeze(0)
        return self.out(torch.tanh(self.token(x) + self.position(positions))).mean(1)


class SequenceFirst(nn.Module):
    """A layer that sees the sequence first and the samples second."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1)
        return self.out(h.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.attention(x, x, x)[0].mean(1))


class Functional(nn.Module):
    """Parameters used directly: a class token, and the weight of a layer that is also called."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.both, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.out(torch.tanh(self.both(x) + F.linear(x, self.both.weight)).mean(1))


class Scale(nn.Module):
    """A layer of a type without a rule."""

    def __init__(self, width):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.scale.exp() + self.shift


class Unbatchable(nn.Module):
    """A layer that branches on values, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return x * self.scale if x.sum() > 0 else self.scale * x


class Partly(nn.Module):
    """A layer that the forward pass does not reach."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


class BoundLayer(nn.Linear):
    """A subclass with a forward of its own, for which Linear's rule would be wrong."""

    def forward(self, x):
        return 3 * super().forward(x) ** 2


class Joined(nn.Module):
    """Parameters without a dimension for samples, each of a layer that is not called with samples.

    They are added (positions, a bias that a mask chooses), multiplied, or repeated (a prompt).
    """

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.position, self.prompt = nn.Embedding(5, 4), nn.Embedding(2, 4)
        self.own = nn.ParameterDict({"scale": torch.rand(1, 4), "bias": torch.rand(5, 1)})

    def forward(self, x):
        h = self.inner(x) + self.position(torch.arange(x.shape[1])).tanh()
        bias = torch.where(x[..., :1] > 0, self.own["bias"].exp(), 0.5 * h)
        prompts = self.prompt.weight.repeat(len(x), 1, 1)
        first = self.prompt(torch.tensor([0])).expand(len(x), 1, 4)
        h = torch.cat([first, prompts, (h + bias) * self.own["scale"]], 1)
        return self.out(torch.tanh(h)).mean(1)


class Transposed(nn.Module):
    """A layer whose gradient arrives transposed in memory."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x).transpose(1, 2))).mean(1)


class FlattenedSamples(nn.Module):
    """Layers that see samples and positions in one dimension."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.scale = nn.Linear(3, 4), nn.LayerNorm(4), Scale(4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        h = self.scale(self.norm(self.inner(x.reshape(-1, 3)))).reshape(*x.shape[:2], 4)
        return self.out(torch.tanh(h).mean(1))


class FlattenedPositions(FlattenedSamples):
    """The same with all samples of a position next to each other."""

    def forward(self, x):
        h = self.scale(self.norm(self.inner(x.transpose(0, 1).reshape(-1, 3))))
        return self.out(torch.tanh(h.reshape(x.shape[1], x.shape[0], 4)).mean(0))


class SeveralArguments(nn.Module):
    """Learned positions that are told where to begin, and a container with a parameter."""

    class Positions(nn.Embedding):
        def forward(self, x, start, places=None, scale=1.0):
            counted = torch.arange(start, start + x.shape[1]).expand(len(x), -1)
            return scale * super().forward(counted if places is None else places)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.share = nn.Linear(3, 3), nn.Parameter(torch.rand(3))

        def forward(self, x, mask, *, both):
            return self.inner(x) * self.share + both[0] * mask + both[1]

    def __init__(self):
        super().__init__()
        self.positions, self.mixed, self.out = self.Positions(9, 3), self.Mixed(), nn.Linear(3, 2)

    def forward(self, x):
        h = (
            x
            + self.positions(x, 2)
            + self.positions(x, 1, places=(x[..., 0] > 0).long(), scale=2.0)
        )
        mask = torch.ones(x.shape[1], 1).to(x)
        return self.out(self.mixed(h.tanh(), mask, both=(x, 0.5)).mean(1))


class TiedBias(nn.Module):
    """A head whose bias is that of the layer inside it too."""

    def __init__(self):
        super().__init__()
        self.inner, self.decoder = nn.Linear(3, 3), nn.Linear(3, 2)
        self.bias = self.decoder.bias

    def forward(self, x):
        return self.decoder(torch.tanh(self.inner(x)))


def norms_perturbed(model):
    """Moves norms away from their start, where weights are 1, biases 0 and statistics trivial."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.3 * torch.rand_like(tensor)
    return model.eval()


def numbers(*shape, targets):
    """Batches of floating inputs (B, *shape) and targets (B, *targets)."""
    return lambda length: (torch.randn(length, *shape), torch.randn(length, *targets))


def tokens(length_of_text, targets):
    """Batches of integer inputs (B, T) below 6 and floating targets."""
    return lambda length: (
        torch.randint(0, 6, (length, length_of_text)),
        torch.randn(length, *targets),
    )


def classes(*shape, n_classes):
    return lambda length: (torch.randn(length, *shape), torch.randint(0, n_classes, (length,)))


def _flat(*layers):
    return lambda: norms_perturbed(Flat(*[layer() for layer in layers]))


def _conv(kind, *args, **kwargs):
    return _flat(lambda: kind(*args, **kwargs))


def _stored(build):
    """With weights (inputs, outputs), as GPT-2 has them."""
    return lambda: importlib.import_module("stored_transposed").transposed(build())


CASES = {
    "linear": Case(lambda: nn.Linear(3, 2), numbers(3, targets=(2,))),
    "linear 1-D targets": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)),
        classes(3, n_classes=3),
        F.cross_entropy,
    ),
    "linear 3-D": Case(_flat(lambda: nn.Linear(3, 2)), numbers(4, 3, targets=(8,))),
    "linear 4-D no bias": Case(
        _flat(lambda: nn.Linear(3, 2, bias=False)), numbers(2, 4, 3, targets=(16,))
    ),
    "embedding": Case(_flat(lambda: nn.Embedding(6, 3)), tokens(4, (12,))),
    "embedding padding": Case(_flat(lambda: nn.Embedding(6, 3, padding_idx=2)), tokens(4, (12,))),
    "conv1d": Case(
        _conv(nn.Conv1d, 4, 6, 3, stride=2, padding=1, groups=2), numbers(4, 9, targets=(30,))
    ),
    "conv1d same": Case(
        _conv(nn.Conv1d, 2, 3, 4, padding="same", dilation=2), numbers(2, 9, targets=(27,))
    ),
    "conv2d": Case(
        _conv(nn.Conv2d, 4, 2, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        numbers(4, 7, 5, targets=(56,)),
    ),
    "conv2d circular": Case(
        _conv(nn.Conv2d, 2, 3, 3, padding=1, padding_mode="circular", bias=False),
        numbers(2, 4, 4, targets=(48,)),
    ),
    "conv2d uneven stride": Case(
        _conv(nn.Conv2d, 2, 3, 3, stride=2), numbers(2, 6, 6, targets=(12,))
    ),
    "conv3d": Case(
        _conv(nn.Conv3d, 2, 4, 2, stride=2, padding=1, groups=2),
        numbers(2, 4, 3, 4, targets=(4 * 3 * 2 * 3,)),
    ),
    "layer norm": Case(_flat(lambda: nn.LayerNorm(5)), numbers(3, 5, targets=(15,))),
    "layer norm 2-D": Case(_flat(lambda: nn.LayerNorm((3, 5))), numbers(3, 5, targets=(15,))),
    "group norm": Case(_flat(lambda: nn.GroupNorm(2, 4)), numbers(4, 3, 3, targets=(36,))),
    "batch norm 1d": Case(_flat(lambda: nn.BatchNorm1d(4)), numbers(4, targets=(4,))),
    "batch norm 2d": Case(_flat(lambda: nn.BatchNorm2d(4)), numbers(4, 3, 3, targets=(36,))),
    "batch norm 3d": Case(_flat(lambda: nn.BatchNorm3d(2)), numbers(2, 2, 2, 2, targets=(16,))),
    "rms norm": Case(_flat(lambda: nn.RMSNorm(5)), numbers(3, 5, targets=(15,))),
    "rms norm eps": Case(_flat(lambda: nn.RMSNorm(5, eps=0.1)), numbers(3, 5, targets=(15,))),
    "no rule": Case(_flat(lambda: Scale(3), lambda: nn.PReLU()), numbers(4, 3, targets=(12,))),
    "in-place": Case(
        _flat(lambda: nn.Linear(3, 4), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(4, 2)),
        numbers(3, targets=(2,)),
    ),
    "in-place on a view": Case(
        _flat(lambda: nn.Linear(3, 4), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(4, 2)),
        numbers(5, 3, targets=(10,)),
    ),
    "tied and reused": Case(Tied, tokens(4, (6,))),
    "positions": Case(Positions, tokens(4, (3,))),
    "transposed": Case(Transposed, numbers(5, 3, targets=(2,))),
    "subclass": Case(_flat(lambda: BoundLayer(3, 2)), numbers(3, targets=(2,))),
    "unused": Case(Partly, numbers(3, targets=(2,))),
    "sequence first": Case(
        SequenceFirst,
        numbers(5, 3, targets=(2,)),
        per_sample=frozenset({"inner.weight", "inner.bias"}),
    ),
    "samples flattened": Case(FlattenedSamples, numbers(5, 3, targets=(2,))),
    "positions flattened": Case(
        FlattenedPositions,
        numbers(5, 3, targets=(2,)),
        per_sample=frozenset(
            f"{layer}.{name}"
            for layer, names in {
                "inner": ("weight", "bias"),
                "norm": ("weight", "bias"),
                "scale": ("scale", "shift"),
            }.items()
            for name in names
        ),
    ),
    "several arguments": Case(SeveralArguments, numbers(5, 3, targets=(2,))),
    "tied bias": Case(TiedBias, numbers(3, targets=(2,))),
    "lstm": Case(
        Recurrent,
        numbers(5, 3, targets=(2,)),
        per_sample=frozenset(
            {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}
        ),
    ),
    "attention": Case(Attention, numbers(5, 4, targets=(2,))),
    "joined": Case(Joined, numbers(5, 3, targets=(2,))),
    "functional": Case(
        Functional, numbers(5, 3, targets=(2,)), per_sample=frozenset({"both.weight"})
    ),
    "vmap refuses": Case(_flat(lambda: nn.Linear(3, 3), Unbatchable), numbers(3, targets=(3,))),
    "scaled by frequency": Case(
        _flat(lambda: nn.Embedding(6, 3, scale_grad_by_freq=True)),
        tokens(4, (12,)),
        per_sample=frozenset({"layers.0.weight"}),
    ),
    "stored transposed": Case(_stored(lambda: nn.Linear(3, 2)), numbers(4, 3, targets=(4, 2))),
    "stored transposed, 4-D": Case(
        _stored(lambda: Flat(nn.Linear(3, 2))), numbers(2, 4, 3, targets=(16,))
    ),
    "stored transposed, samples flattened": Case(
        _stored(FlattenedSamples), numbers(5, 3, targets=(2,))
    ),
    "scalars": Case(lambda: nn.Sequential(Gate(), nn.Linear(2, 2)), numbers(4, 3, targets=(4, 2))),
    "sparse embedding": Case(_flat(lambda: nn.Embedding(6, 3, sparse=True)), tokens(4, (12,))),
}

EXPLAINED = {name: case for name, case in CASES.items() if not case.per_sample}
