"""What share of the energy compressed rows must keep: scores of retraining by share.

python benchmarks/chosen_ranks.py [--subsets 40] [--networks perceptron] [--banks FOLDER]

The data is scikit-learn's digits (1,000 training and 200 test images of 8 x 8) with a tenth of the
training labels drawn anew; a perceptron (64, 48, 24, 10) and a convolutional network are trained
on it and on random halves, with weight decay. Minutes on one core.
"""

import argparse
import json
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")

from pydvl_datainf import DataInfInfluence, ExactInfluence  # noqa: E402
from pydvl_datainf.inverse import coordinates  # noqa: E402
from pydvl_datainf.yardstick import compare, validate  # noqa: E402
from retraining import convolutional, descended, perceptron  # noqa: E402

TRAIN, TEST, CLASSES, NOISE = 1000, 200, 10, 0.1
EPOCHS, RATE = 30, 0.1
SHARES = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
SCORED_SEED = 100


@cache
def data():
    """Training and test images, (x, y) each."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))[: TRAIN + TEST]
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = labels[order]
    drawn = rng.random(TRAIN) < NOISE
    y[:TRAIN][drawn] = rng.integers(0, CLASSES, drawn.sum())
    y = torch.tensor(y, dtype=torch.long)
    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])


NETWORKS = {
    "perceptron": lambda: perceptron((64, 48, 24, CLASSES)),
    "convolutional": lambda: convolutional(64),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    network: str
    decay: float

    def fit(self, indices, seed):
        """A model trained on some of the images."""
        x, y = (part[indices] for part in data()[0])
        torch.manual_seed(seed)
        return descended(NETWORKS[self.network](), x, y, self.decay, EPOCHS, RATE)

    def __call__(self, indices, seed):
        """The losses of the test images."""
        model, (x, y) = self.fit(indices, seed), data()[1]
        with torch.no_grad():
            return F.cross_entropy(model(x), y, reduction="none").numpy()


def scored(model, kind, **settings):
    """Influences (m, n), and the numbers that are kept of each block."""
    influence = kind(model, F.cross_entropy, **settings)
    influence.fit(DataLoader(TensorDataset(*data()[0]), 200))
    return influence.training_influences(*data()[1]).numpy(), list(influence.ranks.values())


def measured(recipe, subsets, folder):
    """What one model says."""
    model = recipe.fit(np.arange(TRAIN), SCORED_SEED)
    scores, ranks = {}, {}
    scores["whole"], ranks["whole"] = scored(model, ExactInfluence, rows="memory")
    scores["DataInf, whole"], _ = scored(model, DataInfInfluence, rows="memory")
    for share in SHARES:
        coordinates.SHARE = share
        asked = {"rows": "compressed", "rank": "auto"}
        scores[f"{share:g}"], ranks[f"{share:g}"] = scored(model, ExactInfluence, **asked)
    bank = folder / f"{recipe.network}-{recipe.decay}.bank"
    validate(scores["whole"], recipe, subsets=subsets, bank=bank, recipe=json.dumps(asdict(recipe)))
    found = compare(scores, bank, against="whole", subsets=subsets)
    with torch.no_grad():
        right = (model(data()[1][0]).argmax(1) == data()[1][1]).float().mean()
    return asdict(recipe) | {
        "accuracy": round(float(right), 4),
        "subsets": subsets,
        "ceiling": round(found.validations["whole"].ceiling, 4),
        "scores": {
            name: {
                "ranks": ranks.get(name),
                "lds": [round(one.lds, 4), round(one.error, 4)],
                "over whole": [round(x, 4) for x in found.differences.get(name, (0.0, 0.0))],
            }
            for name, one in found.validations.items()
        },
    }


def table(found):
    """As the documentation has it."""
    heads = (one["network"] for one in found)
    yield f"| | {' | '.join(heads)} |"
    yield "|---|" + "---|" * len(found)
    for name in found[0]["scores"]:
        cells = (one["scores"][name] for one in found)
        told = (f"{cell['lds'][0]:.3f} ({cell['ranks'] or ''})" for cell in cells)
        yield f"| {name} | {' | '.join(told)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "chosen_ranks.json")
    parser.add_argument("--banks", type=Path, default=Path("chosen_ranks"), help="retrained losses")
    parser.add_argument("--networks", nargs="+", default=["perceptron", "convolutional"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.banks.mkdir(exist_ok=True)
    recipes = [Recipe(network, 5e-3) for network in asked.networks]
    found = [measured(recipe, asked.subsets, asked.banks) for recipe in recipes]
    Path(asked.out).write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
