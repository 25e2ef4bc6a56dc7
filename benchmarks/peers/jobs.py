"""Two small jobs that every library is given, and their scores by the formulas, dense in float64.

The perceptron of benchmarks/retraining.py on Fashion-MNIST, each of its three layers a block; and a
Llama of two layers and random weights with LoRA of rank 4 on q and v, each of the eight matrices a
block, on texts of 12 random tokens, none of them padded. The loss of a text is the sum over its
tokens. All blocks have the same λ: the mean of 0.1 times their mean squared gradient entry.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import adapted
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import dense

TRAIN, TEST = 2000, 200
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
TOKENS = 12
Pair = tuple[Tensor, Tensor]
MOVED = "EK-FAC, positions with a gradient"
"""Of a query layer, for one, the first token of a text has none: it attends to itself alone."""


@dataclass(frozen=True)
class Job:
    """A trained model and its data.

    Args:
        name: "perceptron" or "lora".
        model: gives outputs for a batch x.
        train: inputs and labels.
        test: the same.
        damping: λ.
    """

    name: str
    model: nn.Module
    train: Pair
    test: Pair
    damping: float = 0.0

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean over samples of their losses."""
        if self.name == "perceptron":
            return F.cross_entropy(outputs, y)
        logits, targets = outputs[:, :-1].flatten(0, 1), y[:, 1:].flatten()
        return F.cross_entropy(logits, targets, reduction="sum") / len(y)

    @property
    def blocks(self) -> dict[str, list[str]]:
        """Names of trainable parameters by the module that owns them."""
        found: dict[str, list[str]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                found.setdefault(name.rpartition(".")[0], []).append(name)
        return found


class Logits(nn.Module):
    """From token ids to logits: what takes (x, y) pairs wants a tensor."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids).logits


def perceptron() -> nn.Module:
    layers = nn.Linear(196, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def adapted_llama(attention: str = "eager") -> Any:
    """Eager attention is what vmap can follow."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, pad_token_id=0, attn_implementation=attention)
    return adapted(LlamaForCausalLM, config, ["q_proj", "v_proj"])


def prepare(name: str, data: str, file: Path) -> None:
    """Writes what the processes need that score: weights and samples, all that there are."""
    if name == "perceptron":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from retraining import Recipe, load

        model = Recipe("perceptron", 5e-3, data).fit(np.arange(TRAIN), 100)
        train, test = load(data)
    else:
        model = Logits(adapted_llama())
        generator = torch.Generator().manual_seed(1)
        shape = TRAIN + TEST, TOKENS
        ids = torch.randint(1, SIZES["vocab_size"], shape, generator=generator)
        train, test = ((part, part.clone()) for part in ids.split([TRAIN, TEST]))
    torch.save({"weights": model.state_dict(), "train": train, "test": test}, file)


def load_job(name: str, file: Path, n: int, m: int, damping: float = 0.0) -> Job:
    """The first n training and m test samples."""
    kept = torch.load(file)
    model = perceptron() if name == "perceptron" else Logits(adapted_llama())
    model.load_state_dict(kept["weights"])
    parts = (tuple(t[:count] for t in kept[side]) for side, count in (("train", n), ("test", m)))
    return Job(name, model.eval(), *parts, damping)


# What is right


def truth(job: Job) -> dict[str, Any]:
    """λ, and scores (test, train) by the formula of each method."""
    if job.name == "lora":  # eager attention takes its softmax in float32 whatever the model's
        job.model.inner.set_attn_implementation("sdpa")
    job = Job(job.name, job.model.double(), *(in_float64(p) for p in (job.train, job.test)))
    train, test = (gradients(job, side) for side in (job.train, job.test))
    λ = sum(dense.automatic_damping(rows) for rows in train.values()) / len(train)
    all_bases, moved_bases = (eigenbases(job, only_moved=moved) for moved in (False, True))
    inverses: dict[str, Callable[[str], Tensor]] = {
        "DataInf": lambda block: datainf(train[block], test[block], λ),
        "exact": lambda block: solved(second_moment(train[block]), test[block], λ),
        "EK-FAC": lambda block: ekfac(train[block], test[block], λ, **all_bases[block]),
        MOVED: lambda block: ekfac(train[block], test[block], λ, **moved_bases[block]),
    }
    found: dict[str, Any] = {
        name: sum(answers(block) @ rows.T for block, rows in train.items()).numpy()
        for name, answers in inverses.items()
    }
    if job.name == "perceptron":
        vectors, rows = (torch.cat(list(parts.values()), 1) for parts in (test, train))
        found["Hessian"] = (solved(hessian(job), vectors, λ) @ rows.T).numpy()
    return found | {"damping": λ}


def in_float64(pair: Pair) -> Pair:
    x, y = pair
    return (x.double() if x.is_floating_point() else x), y


def gradients(job: Job, pair: Pair) -> dict[str, Tensor]:
    """One backward pass after another."""
    widths = {
        block: sum(job.model.get_parameter(name).numel() for name in names)
        for block, names in job.blocks.items()
    }
    names = [name for names in job.blocks.values() for name in names]
    rows = dense.gradients(job.model, job.loss, pair, names)
    return dict(zip(widths, rows.split(list(widths.values()), 1), strict=True))


def second_moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def solved(matrix: Tensor, vectors: Tensor, λ: float) -> Tensor:
    """(H + λ I)⁻¹ v, as rows."""
    return torch.linalg.solve(matrix + λ * torch.eye(len(matrix)).double(), vectors.T).T


def datainf(rows: Tensor, vectors: Tensor, λ: float) -> Tensor:
    """(1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ v, as rows."""
    weights = 1 / (λ + (rows**2).sum(1))
    return (vectors - (vectors @ rows.T * weights) @ rows / len(rows)) / λ


def ekfac(
    rows: Tensor, vectors: Tensor, λ: float, Q_A: Tensor, Q_S: Tensor, *, has_bias: bool
) -> Tensor:
    """Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ; a row is the gradient of a weight, then of a bias."""
    o = len(Q_S)

    def matrices(flat: Tensor) -> Tensor:
        if not has_bias:
            return flat.view(len(flat), o, -1)
        return torch.cat([flat[:, :-o].view(len(flat), o, -1), flat[:, -o:, None]], 2)

    Λ = ((Q_S.T @ matrices(rows) @ Q_A) ** 2).mean(0)
    V = Q_S @ ((Q_S.T @ matrices(vectors) @ Q_A) / (Λ + λ)) @ Q_A.T
    return torch.cat([V[..., :-1].flatten(1), V[..., -1]], 1) if has_bias else V.flatten(1)


def eigenbases(job: Job, *, only_moved: bool) -> dict[str, dict[str, Any]]:
    """Of the second moments of each layer's inputs (1 for a bias) and output gradients.

    Over all positions but the last of each text, which predicts nothing, or over those whose
    gradient is not zero.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(block: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            inputs[block], outputs[block] = given[0], output

        return hook

    layers = {block: job.model.get_submodule(block) for block in job.blocks}
    hooks = [layer.register_forward_hook(watch(block)) for block, layer in layers.items()]
    x, y = job.train
    losses = job.loss(job.model(x), y) * len(y)
    given = torch.autograd.grad(losses, list(outputs.values()))
    for hook in hooks:
        hook.remove()
    found = {}
    for (block, a), g in zip(inputs.items(), given, strict=True):
        if g.ndim == 3:  # the last token of a text predicts nothing
            a, g = a[:, :-1].flatten(0, 1), g[:, :-1].flatten(0, 1)
        if only_moved:
            moved = g.abs().amax(1) > 1e-12 * g.abs().max()
            a, g = a[moved], g[moved]
        has_bias = layers[block].bias is not None
        a = F.pad(a, (0, 1), value=1.0) if has_bias else a
        Q_A, Q_S = (torch.linalg.eigh(t.detach().T @ t.detach() / len(t))[1] for t in (a, g))
        found[block] = {"Q_A": Q_A, "Q_S": Q_S, "has_bias": has_bias}
    return found


def hessian(job: Job) -> Tensor:
    """Of the mean loss, with respect to all parameters together."""
    parameters = dict(job.model.named_parameters())
    shapes = {name: p.shape for name, p in parameters.items()}
    x, y = job.train

    def mean_loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        views = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return job.loss(torch.func.functional_call(job.model, views, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.func.jacrev(torch.func.grad(mean_loss), chunk_size=256)(flat)
