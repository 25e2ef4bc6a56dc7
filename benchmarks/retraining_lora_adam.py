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
from pydvl_datainf.yardstick import compare
from retrained import lds, lds_of, unit_scores
from retraining_lora import SCORED_SEEDS, SETTINGS, TRAIN, Recipe, load, taken

SCORED = ("hessian-free", "datainf", "exact")


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
        batches = [taken(train, part) for part in torch.arange(TRAIN).split(100)]
        each.append(unit_scores(model, SequenceClassification(), batches, (test,), adam, SCORED))
    summed = {f"{name}, sum over seeds": sum(s[name] for s in each) for name in each[0]}
    scores, count = each[0] | summed, dict.fromkeys(summed, len(each))
    table = compare(scores, options.bank, against="datainf", checkpoints=count)
    Console().print(options.setting, table)
    seeds = {name: [lds(s[name], options.bank) for s in each] for name in each[0]}
    Console().print(seeds)
    told = {
        "setting": options.setting,
        "scores": lds_of(table),
        "lds of the models of all seeds": seeds,
    }
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
