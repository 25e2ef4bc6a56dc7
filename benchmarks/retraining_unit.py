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

from pydvl_datainf.yardstick import compare
from retrained import lds_of, unit_scores
from retraining import SCORED_SEEDS, TRAIN, Recipe, load


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
            train, test = load(recipe.data)
            batches = DataLoader(TensorDataset(*train), 200)
            scores = unit_scores(model, F.cross_entropy, batches, test)
            table = compare(scores, options.banks / f"{name}.bank", against="datainf")
            Console().print(name, table)
            found[name] = lds_of(table)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
