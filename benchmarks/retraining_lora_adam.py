"""Adam's coordinates and unit gradients beside the retrainings of `retraining_lora.py`.

python benchmarks/retraining_lora_adam.py --glue DIR --bank retraining-lora/sst2-top.bank

The bank is only read; nothing is retrained but the five models that are scored, from their seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from pydvl_datainf import AdamPreconditioner, SequenceClassification
from pydvl_datainf.influence.by_name import METHODS
from pydvl_datainf.yardstick import compare
from retraining_lora import SCORED_SEEDS, SETTINGS, TRAIN, Recipe, load, taken

SCORED = ("hessian-free", "datainf", "exact")


def scores_of(model, adam, train, test):
    """For each name influences (m, n)."""
    found = {}
    for method in SCORED:
        for where, preconditioner in (("", None), (", Adam", adam)):
            influence = METHODS[method](
                model, SequenceClassification(), preconditioner=preconditioner
            )
            influence.fit([taken(train, part) for part in torch.arange(TRAIN).split(100)])
            scores = influence.training_influences(test).numpy()
            rows = list(influence.training_gradients_by_block())
            squares = [sum(g.square().sum(1) for g in chunk.values()) for chunk in rows]
            found[f"{method}{where}"] = scores
            found[f"{method}{where}, unit"] = scores / torch.cat(squares).sqrt().numpy()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--bank", required=True)
    parser.add_argument("--out", type=Path, default=Path("retraining-lora/adam.json"))
    parser.add_argument("--setting", choices=SETTINGS, default="sst2-top")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipe = Recipe(SETTINGS[options.setting], str(Path(options.glue).resolve()))
    train, test = load(recipe.glue, recipe.setting)
    each = []
    for seed in SCORED_SEEDS:
        model, optimizer = recipe.tune(np.arange(TRAIN), seed)
        adam = AdamPreconditioner.from_optimizer(optimizer, model)
        each.append(scores_of(model, adam, train, test))
    summed = {f"{name}, sum over seeds": sum(s[name] for s in each) for name in each[0]}
    scores, count = each[0] | summed, dict.fromkeys(summed, len(each))
    table = compare(scores, options.bank, against="datainf", checkpoints=count)
    Console().print(options.setting, table)
    seeds = {
        name: [round(compare({name: s[name]}, options.bank).validations[name].lds, 4) for s in each]
        for name in each[0]
    }
    Console().print(seeds)
    found = {
        name: {
            "lds": [round(one.lds, 4), round(one.error, 4)],
            "over datainf": [round(x, 4) for x in table.differences.get(name, (0.0, 0.0))],
        }
        for name, one in table.validations.items()
    }
    told = {"setting": options.setting, "scores": found, "lds of the models of all seeds": seeds}
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
