"""Tables of many scores beside the same retrainings, for the scripts that retrain models."""

import json

import numpy as np
import torch
from rich.console import Console

from pydvl_datainf.influence.by_name import METHODS
from pydvl_datainf.yardstick import compare, validate

NEWTON, DRAWN = "exact, Gauss-Newton", "ekfac, drawn labels"
RANKS = (32, 64, 128, 256)
"""Of rows that are compressed."""


def by_model(models, score):
    """For each method the scores (m, n) of each model, by `score(model, method, **settings)`."""
    settings = {method: {} for method in METHODS}
    settings |= {NEWTON: {"curvature": "gauss-newton"}, DRAWN: {"labels": "drawn"}}
    return {
        name: [score(model, name.split(",")[0], **own) for model in models]
        for name, own in settings.items()
    }


def all_scores(models, each, score):
    """For each name scores of the first model, or sums over all of them."""
    first = models[0]
    found = {name: scores[0] for name, scores in each.items()}
    for scale in (0.1, 10, 100):
        settings = {"damping_scale": scale}
        found[f"exact, {scale} λ"] = score(first, "exact", **settings)
        newton = settings | {"curvature": "gauss-newton"}
        found[f"{NEWTON}, {scale} λ"] = score(first, "exact", **newton)
    for method in ("datainf", "ekfac"):
        found[f"{method}, 10 λ"] = score(first, method, damping_scale=10)
    for rank in RANKS:
        settings = {"rows": "compressed", "rank": rank}
        found[f"datainf, rank {rank}"] = score(first, "datainf", **settings)
        found[f"exact, rank {rank}"] = score(first, "exact", **settings)
    for method in ("datainf", "exact"):
        found[f"{method}, sum over {len(models)} seeds"] = sum(each[method])
    shuffled = np.random.default_rng(0).permuted(found["exact"], axis=1)
    return found | {"exact, shuffled": shuffled}


def similarities(features, labels):
    """Cosines of features of (test, training) samples, and with the sign of label agreement."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in features)
    cosine, same = a @ b.T, labels[0][:, None] == labels[1]
    return {"RepSim": cosine, "RepSim, signed by label": np.where(same, cosine, -cosine)}


def unit_scores(model, objective, train, test, adam=None, methods=("hessian-free", "datainf")):
    """For each method influences (m, n), plain and of unit gradients, with Adam's coordinates too.

    Args:
        model: that is scored.
        objective: its loss.
        train: training batches.
        test: what `training_influences` takes for all test samples.
        adam: the preconditioner; without it there are none in Adam's coordinates.
        methods: names.
    """
    found = {}
    for method in methods:
        for where, preconditioner in {"": None, ", Adam": adam}.items():
            if where and adam is None:
                continue
            influence = METHODS[method](model, objective, preconditioner=preconditioner)
            influence.fit(train)
            scores = influence.training_influences(*test).numpy()
            chunks = influence.training_gradients_by_block()
            squares = [sum(g.square().sum(1) for g in chunk.values()) for chunk in chunks]
            norms = torch.cat(squares).sqrt().clamp_min(torch.finfo(torch.float32).tiny).numpy()
            found |= {f"{method}{where}": scores, f"{method}{where}, unit": scores / norms}
    return found


def lds_of(table):
    """What a table of `compare` says, for a JSON file."""
    return {
        name: {
            "lds": [round(one.lds, 4), round(one.error, 4)],
            "over datainf": [round(x, 4) for x in table.differences.get(name, (0.0, 0.0))],
        }
        for name, one in table.validations.items()
    }


def lds(scores, bank, subsets=None):
    return round(compare({"scores": scores}, bank, subsets=subsets).validations["scores"].lds, 4)


def measure(title, models, score, others, train, told, bank, subsets, jobs=1):
    """Retrains, and prints the table of all scores.

    Args:
        title: for people.
        models: that are scored, of one recipe and different seeds.
        score: `score(model, method, **settings)` gives influences (m, n).
        others: further scores (m, n) by name.
        train: `train(indices, seed)`, as `validate` takes it.
        told: of the recipe.
        bank: where losses are kept.
        subsets: halves.
        jobs: retrainings at once.

    Returns:
        What the table says, for a JSON file.
    """
    each = by_model(models, score)
    scores = all_scores(models, each, score) | others
    validate(
        scores["datainf"], train, subsets=subsets, n_jobs=jobs, bank=bank, recipe=json.dumps(told)
    )
    sums = {name: len(models) for name in scores if "sum over" in name}
    table = compare(scores, bank, against="datainf", subsets=subsets, checkpoints=sums)
    Console().print(title, table)
    base = table.validations["datainf"]
    of_models = {name: [lds(s, bank, subsets) for s in parts] for name, parts in each.items()}
    for name, found in of_models.items():
        Console().print(f"  {name}, models of {len(models)} seeds: {np.round(found, 3)}")
    return {
        "subsets": base.subsets,
        "ceiling": round(base.ceiling, 4),
        "lds of the models of all seeds": of_models,
        "scores": {
            name: {
                "lds": [round(one.lds, 4), round(one.error, 4)],
                "size": [round(one.slope, 5), round(one.slope_error, 5)],
                "over datainf": [round(x, 4) for x in table.differences.get(name, (0.0, 0.0))],
            }
            for name, one in table.validations.items()
        },
    }
