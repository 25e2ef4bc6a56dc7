"""How well scores predict retraining: every method, λ and sum over seeds on four small models.

python benchmarks/retraining.py --data DIR [--out results.json] [--subsets 80]

The data is Fashion-MNIST (Debian: apt install dataset-fashion-mnist), 2,000 training and 200 test
images, averaged to 14 x 14. Each of a multilayer perceptron (5,578 parameters) and a convolutional
network (2,698) is trained with and without weight decay. Retrained losses are kept beside --out.
"""

import argparse
import gzip
import json
import warnings
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")

from pydvl_datainf.influence.by_name import METHODS  # noqa: E402
from retrained import measure, similarities  # noqa: E402

TRAIN, TEST, SIDE, CLASSES = 2000, 200, 14, 10
EPOCHS, BATCH, RATE, MOMENTUM = 40, 100, 0.05, 0.9

SCORED_SEEDS = range(100, 105)
"""Of the models whose influences are measured; retrainings have other seeds, 0 and 1."""


def perceptron(sizes=(SIDE**2, 24, 24, CLASSES)):
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def convolutional(features=144):
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    pooled = (nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        first, *pooled, second, *pooled, nn.Flatten(), nn.Linear(features, CLASSES)
    )


def descended(model, x, y, decay, epochs, rate):
    """A model after steps with momentum and weight decay, at a rate that falls to zero."""
    settings = {"lr": rate, "momentum": MOMENTUM, "weight_decay": decay}
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; picklable, so that other processes can."""

    network: str
    decay: float
    data: str

    def fit(self, indices, seed):
        """A model trained on some of the images."""
        x, y = (part[indices] for part in load(self.data)[0])
        torch.manual_seed(seed)
        model = {"perceptron": perceptron, "convolutional": convolutional}[self.network]()
        return descended(model, x, y, self.decay, EPOCHS, RATE)

    def __call__(self, indices, seed):
        """The losses of the test images."""
        torch.set_num_threads(1)
        model, (x, y) = self.fit(indices, seed), load(self.data)[1]
        with torch.no_grad():
            return F.cross_entropy(model(x), y, reduction="none").numpy()


def load(folder):
    """Training and test images, (x, y) each."""
    found = []
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        with gzip.open(Path(folder) / f"{name}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
        with gzip.open(Path(folder) / f"{name}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
        images = torch.tensor(pixels.reshape(count, 1, 28, 28) / 255.0, dtype=torch.float32)
        found.append((F.avg_pool2d(images, 2), torch.tensor(labels, dtype=torch.long)))
    return found


def scores_of(model, method, train, test, **settings):
    """Influences, (m, n)."""
    influence = METHODS[method](model, F.cross_entropy, **settings)
    influence.fit(DataLoader(TensorDataset(*train), 200))
    return influence.training_influences(*test).numpy()


def measured(recipe, options):
    """The table of one model, and what it says as numbers."""
    train, test = load(recipe.data)
    models = [recipe.fit(np.arange(TRAIN), seed) for seed in SCORED_SEEDS]
    with torch.no_grad():
        right = (models[0](test[0]).argmax(1) == test[1]).float().mean()
        features = [models[0][:-1](x).numpy() for x in (test[0], train[0])]
    told = asdict(recipe) | {"data": "Fashion-MNIST", "epochs": EPOCHS, "batch": BATCH}
    told |= {"rate": RATE, "momentum": MOMENTUM, "torch": torch.__version__}
    found = measure(
        f"{recipe.network}, weight decay {recipe.decay}: accuracy {right:.3f}",
        models,
        lambda model, method, **settings: scores_of(model, method, train, test, **settings),
        similarities(features, (test[1].numpy(), train[1].numpy())),
        recipe,
        told,
        options.out.parent / f"{recipe.network}-{recipe.decay}.bank",
        options.subsets,
        options.jobs,
    )
    return told | {"accuracy": round(float(right), 4)} | found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("retraining/results.json"))
    parser.add_argument("--subsets", type=int, default=80)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipes = [
        Recipe(network, decay, str(Path(options.data).resolve()))
        for network in ("perceptron", "convolutional")
        for decay in (5e-3, 0.0)
    ]
    found = [measured(recipe, options) for recipe in recipes]
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
