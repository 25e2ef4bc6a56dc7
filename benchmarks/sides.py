"""What side bases would lose where rows of wide layers are compressed, at equal numbers kept.

python benchmarks/sides.py --data DIR --banks DIR [--models perceptron-0.005 minilm]

A row of a linear layer is G = Σ_t e_t x_tᵀ, outputs o by inputs i. Compressed rows are B vec(G),
with a basis B learned from whole rows. With side bases Q_o (o, a) and Q_i (i, b), the leading
eigenvectors of Σ G Gᵀ and Σ Gᵀ G over the same samples, Q_oᵀ G Q_i = Σ_t (Q_oᵀ e_t)(Q_iᵀ x_t)ᵀ
takes the place of G, and B is learned from that. Layers of at least --least parameters get them.

Influences by the exact inverse are compared with those from whole rows (rank correlation) and, for
the networks of retraining.py, with retraining (--banks: where that left its losses). MiniLM is
the last layer of the demo's model, of which the wider half is tuned on film reviews. Minutes.
"""

import argparse
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")

import retraining  # noqa: E402
from pydvl_datainf import ExactInfluence  # noqa: E402
from pydvl_datainf.demo.packages import model_folder, reviews_file  # noqa: E402
from pydvl_datainf.demo.reviews import read_reviews  # noqa: E402
from pydvl_datainf.demo.tuning import encode  # noqa: E402
from pydvl_datainf.inverse.agreement import agreement  # noqa: E402
from pydvl_datainf.inverse.directions import leading_directions  # noqa: E402
from pydvl_datainf.yardstick import compare  # noqa: E402

WIDTHS = (2, 4, 8, 16)
"""Side bases keep one of so many outputs, and one of so many inputs."""

ENERGIES = (0.99, 0.999)
"""Or the fewest of each that hold this share of the sample's energy."""

TOKENS, REVIEWS, QUERIES = 32, 300, 32


@dataclass(frozen=True)
class Setting:
    """A trained model and its data.

    Attributes:
        model: whose trainable layers are blocks.
        train: samples, (x, y).
        test: others.
        ranks: that are tried.
        bank: retrained losses; None = there are none.
    """

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    ranks: tuple[int, ...]
    bank: Path | None = None


@dataclass(frozen=True)
class Layer:
    """Rows of one layer as matrices, training samples' (n, o, i) and queries' (m, o, i)."""

    G: Tensor
    V: Tensor

    @property
    def width(self) -> int:
        """Parameters."""
        return self.G[0].numel()

    @cached_property
    def damping(self) -> float:
        """λ, that of whole rows."""
        return 0.1 * float(self.G.double().square().sum()) / (len(self.G) * self.width)

    def side_bases(self, sample: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each side eigenvalues and eigenvectors, the largest first."""
        S = self.G[sample]
        o, i = S.shape[1:]
        outputs = S.transpose(0, 1).reshape(o, -1)
        inputs = S.reshape(-1, i)
        moments = (M.double() for M in (outputs @ outputs.mT, inputs.mT @ inputs))
        return tuple((L.flip(0), Q.flip(1).to(S)) for L, Q in map(torch.linalg.eigh, moments))

    def on_sides(self, Q_o: Tensor, Q_i: Tensor) -> "Layer":
        """The same rows projected on both sides."""
        return Layer(*(Q_o.mT @ X @ Q_i for X in (self.G, self.V)))

    def kept(self, sample: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Coordinates of rows and of queries in the basis that the sample's rows give."""
        G, V = (X.flatten(1) for X in (self.G, self.V))
        if self.width <= rank:
            return G.double(), V.double()
        B = leading_directions(G[sample], rank).double()
        return tuple(torch.cat([x.double() @ B.mT for x in X.split(50)]) for X in (G, V))


def influences(G: Tensor, V: Tensor, λ: float) -> Tensor:
    """V (GᵀG/n + λ)⁻¹ Gᵀ in float64, by n x n or d x d matrices."""
    n, d = G.shape
    G, V = G.double(), V.double()
    if n <= d:
        K = G @ G.mT / n
        return V @ G.mT @ torch.linalg.inv(K + λ * torch.eye(n, dtype=K.dtype))
    H = G.mT @ G / n + λ * torch.eye(d, dtype=G.dtype)
    return V @ torch.linalg.solve(H, G.mT)


def image_setting(name: str, data: str, banks: Path) -> Setting:
    """A network of retraining.py."""
    network, decay = name.split("-")
    recipe = retraining.Recipe(network, float(decay), data)
    model = recipe.fit(np.arange(retraining.TRAIN), retraining.SCORED_SEEDS[0])
    return Setting(model, *retraining.load(data), (64, 256), banks / f"{name}.bank")


class LastLayer(nn.Module):
    """MiniLM's last layer on hidden states (B, T, h); of it 1,536 x 384 weights are trained."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(384, 2)
        layer.requires_grad_(False).intermediate.requires_grad_(True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits."""
        states = self.layer(hidden)
        return self.head((states if isinstance(states, Tensor) else states[0]).mean(1))


def minilm_setting() -> Setting:
    """Reviews of at least TOKENS tokens, cut there, so that there is no padding."""
    from transformers import AutoModel

    reviews = read_reviews(reviews_file())
    order = np.random.default_rng(0).permutation(len(reviews))[: 8 * REVIEWS]
    encoded = encode(reviews[order], model_folder(), TOKENS).to_batch()
    long = encoded["attention_mask"].all(1).nonzero()[: REVIEWS + QUERIES, 0]
    assert len(long) == REVIEWS + QUERIES
    bert = AutoModel.from_pretrained(model_folder(), local_files_only=True).eval()
    layers = bert.encoder.layer
    last, bert.encoder.layer = layers[-1], layers[:-1]
    with torch.no_grad():
        x = bert(input_ids=encoded["input_ids"][long]).last_hidden_state
    y = encoded["labels"][long]
    torch.manual_seed(0)
    model = LastLayer(last)
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), 2e-4)
    for _ in range(4):
        for batch in torch.randperm(REVIEWS).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return Setting(model, (x[:REVIEWS], y[:REVIEWS]), (x[REVIEWS:], y[REVIEWS:]), (32, 128))


def layers_of(setting: Setting) -> list[Layer]:
    """The rows of each layer; a bias is the weight of an input that is 1."""
    influence = ExactInfluence(setting.model, F.cross_entropy, batch_size=20)
    rows = [influence.loss_gradients_by_block(*data) for data in (setting.train, setting.test)]
    found = []
    for block in list(rows[0]):
        o = setting.model.get_submodule(block).weight.shape[0]
        matrices = []
        for vectors in rows:
            weight, bias = vectors[block].split([vectors[block].shape[1] - o, o], 1)
            matrices.append(torch.cat([weight.unflatten(1, (o, -1)), bias[..., None]], 2))
        found.append(Layer(*matrices))
        for vectors in rows:
            del vectors[block]
    return found


def side_widths(L_o: Tensor, L_i: Tensor) -> dict[str, tuple[int, int]]:
    """What is tried, (a, b), by name."""
    o, i = len(L_o), len(L_i)
    tried = {f"1/{p} of each": (-(-o // p), -(-i // p)) for p in WIDTHS}
    for share in ENERGIES:
        a, b = (1 + int((L.cumsum(0) < share * L.sum()).sum()) for L in (L_o, L_i))
        tried[f"{share:g} of energy"] = a, b
    return tried


Shapes = dict[str, list[tuple[int, ...]]]


def compressed(
    layers: list[Layer], sample: Tensor, rank: int, least: int
) -> tuple[dict[str, Tensor], Shapes]:
    """Influences by choice of side bases, whose shapes come with them."""
    found: dict[str, list[Tensor]] = {}
    shapes: Shapes = {"no sides": []}
    plain = [influences(*layer.kept(sample, rank), layer.damping) for layer in layers]
    found["no sides"] = plain
    for at, layer in enumerate(layers):
        if layer.width < least:
            continue
        (L_o, Q_o), (L_i, Q_i) = layer.side_bases(sample)
        shapes["no sides"].append(tuple(layer.G.shape[1:]))
        tried = side_widths(L_o, L_i)
        a, b = map(max, zip(*tried.values(), strict=True))
        widest = layer.on_sides(Q_o[:, :a], Q_i[:, :b])
        for name, (a, b) in tried.items():
            small = Layer(widest.G[:, :a, :b], widest.V[:, :a, :b])
            scores = influences(*small.kept(sample, rank), layer.damping)
            found.setdefault(name, list(plain))[at] = scores
            shapes.setdefault(name, []).append((a, b))
    return {name: torch.stack(parts).sum(0) for name, parts in found.items()}, shapes


def measured(setting: Setting, least: int) -> list[dict[str, Any]]:
    """One line for each rank and choice of sides."""
    layers = layers_of(setting)
    whole = torch.stack(
        [influences(x.G.flatten(1), x.V.flatten(1), x.damping) for x in layers]
    ).sum(0)
    lines = []
    for rank in setting.ranks:
        order = np.random.default_rng(0).permutation(len(setting.train[0]))
        sample = torch.from_numpy(np.sort(order[: 2 * rank]))
        scores, shapes = compressed(layers, sample, rank, least)
        told = {} if setting.bank is None else retrained(scores, whole, setting.bank)
        for name, S in scores.items():
            error, correlation = agreement(S, whole, is_ordered=True)
            line = {"rank": rank, "sides": name, "shapes": shapes[name]}
            line |= {"error": round(error, 4), "rank correlation": round(correlation, 4)}
            lines.append(line | told.get(name, {}))
    return lines


def retrained(scores: dict[str, Tensor], whole: Tensor, bank: Path) -> dict[str, dict[str, Any]]:
    """Linear datamodeling scores, and by how much they differ from that without sides."""
    given = {name: S.numpy() for name, S in scores.items()} | {"whole": whole.numpy()}
    found = compare(given, bank, against="no sides")
    return {
        name: {
            "lds": [round(one.lds, 4), round(one.error, 4)],
            "over no sides": [round(x, 4) for x in found.differences.get(name, (0.0, 0.0))],
            "lds of whole rows": round(found.validations["whole"].lds, 4),
        }
        for name, one in found.validations.items()
        if name != "whole"
    }


def main() -> None:
    """Prints a line for each, and keeps all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--banks", type=Path, default=Path("retraining"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/sides.json")
    parser.add_argument("--least", type=int, default=4_000)
    names = ["perceptron-0.005", "minilm"]
    parser.add_argument("--models", nargs="+", default=names)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in asked.models:
        is_text = name == "minilm"
        setting = minilm_setting() if is_text else image_setting(name, asked.data, asked.banks)
        found[name] = measured(setting, asked.least)
        for line in found[name]:
            print(name, *(f"{key} {value}" for key, value in line.items()), sep="; ", flush=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
