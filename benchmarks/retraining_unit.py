"""Unit gradients beside the retrainings of `retraining.py`.

python benchmarks/retraining_unit.py --banks retraining --data DIR [--out unit.json]

The banks are only read; nothing is trained but the model that is scored, from its seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf.influence.by_name import METHODS
from pydvl_datainf.yardstick import compare
from retraining import SCORED_SEEDS, TRAIN, Recipe, load

SCORED = ("hessian-free", "datainf")


def scores_of(model, train, test):
    """For each name influences (m, n)."""
    found = {}
    for method in SCORED:
        influence = METHODS[method](model, F.cross_entropy)
        influence.fit(DataLoader(TensorDataset(*train), 200))
        scores = influence.training_influences(*test).numpy()
        chunks = influence.training_gradients_by_block()
        squares = [sum(g.square().sum(1) for g in chunk.values()) for chunk in chunks]
        norms = torch.cat(squares).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        found |= {method: scores, f"{method}, unit": scores / norms.numpy()}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banks", type=Path, default=Path("retraining"))
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("retraining/unit.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for network in ("perceptron", "convolutional"):
        for decay in (5e-3, 0.0):
            recipe = Recipe(network, decay, str(Path(options.data).resolve()))
            model = recipe.fit(np.arange(TRAIN), SCORED_SEEDS[0])
            name = f"{network}-{decay}"
            scores = scores_of(model, *load(recipe.data))
            table = compare(scores, options.banks / f"{name}.bank", against="datainf")
            Console().print(name, table)
            found[name] = {
                score: {
                    "lds": [round(one.lds, 4), round(one.error, 4)],
                    "over datainf": [round(x, 4) for x in table.differences.get(score, (0.0, 0.0))],
                }
                for score, one in table.validations.items()
            }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
