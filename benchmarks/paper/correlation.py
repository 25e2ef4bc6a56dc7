"""Figures 1 and 2: how close scores are to the exact inverse's, and what flipped labels they find.

python benchmarks/paper/correlation.py --glue DIR [--small | --full] [--out results]
"""

import json
import warnings
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import click
import glue
import numpy as np
import torch
from conditions import conditions
from given_rows import Rows, fitted, mean_row, published_lissa, side_by_side
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from pydvl_datainf import EkfacInfluence, SequenceClassification
from pydvl_datainf.evaluation import mislabel_auc, relative_influence, suspicion_ranks

SMALL = {"train": 40, "test": 16, "epochs": 1}
FULL = {"train": 4500, "test": 500, "epochs": 10, "learning_rate": 3e-4}
FULL |= {"tokens": 128, "layers": "all"}
FURTHER = 4
"""The rank of the paper's figure 2, at which further scores are computed."""

METHODS = ("exact", "datainf", "hessian-free", "scaled-hessian-free", "lissa")


@click.command(context_settings={"show_default": True})
@click.option("--glue", "folder_of_data", required=True, help="Holds MRPC and SST-2.")
@click.option("--model", default=None, help="A folder for transformers; MiniLM if not given.")
@click.option("--targets", default="query,value", help="Layers with adapters, by commas.")
@click.option("--layers", default="3,4,5", help="Of the transformer that get adapters; all = all.")
@click.option("--tasks", default="SST-2,MRPC")
@click.option("--ranks", default="1,2,4,8,16")
@click.option("--seeds", default=3)
@click.option("--train", default=256)
@click.option("--test", default=80)
@click.option("--tokens", default=40)
@click.option("--epochs", default=5)
@click.option("--learning-rate", default=2e-3)
@click.option("--share", default=0.2, help="Of the training labels that are flipped.")
@click.option("--small", is_flag=True, help="Minutes: one seed, two ranks, 40 samples.")
@click.option("--full", is_flag=True, help="The paper's sizes and rates; many hours on a core.")
@click.option("--out", type=click.Path(path_type=Path), default="paper-results")
def main(
    tasks: str, ranks: str, seeds: int, small: bool, full: bool, out: Path, **options: Any
) -> None:
    """Writes OUT/correlation.json after each run; runs that are in it already are kept."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="LiSSA has not converged")
    options |= SMALL if small else FULL if full else {}
    ranks, seeds = ("1,4", 1) if small else (ranks, seeds)
    out.mkdir(parents=True, exist_ok=True)
    report = {"options": of_all_runs(options), "conditions": conditions()}
    file = out / "correlation.json"
    runs = done(file, report)
    for seed, task, rank in product(range(seeds), tasks.split(","), map(int, ranks.split(","))):
        told = {"task": task, "rank": rank, "seed": seed}
        if any(told.items() <= run.items() for run in runs):
            continue
        runs.append(run(options | told))
        print(json.dumps(runs[-1]), flush=True)
        file.write_text(json.dumps(report | {"runs": runs}, indent=1) + "\n")


def done(file: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a file, which have to be of the same options and conditions."""
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    if {name: found[name] for name in report} != report:
        raise SystemExit(f"{file} holds runs of other options or versions; name another folder")
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def run(options: dict[str, Any]) -> dict[str, Any]:
    """One model: its accuracy, and of each score the correlation and what it finds."""
    start = process_time()
    settings = options | {
        "glue": options["folder_of_data"],
        "folder": glue.model_folder(options["model"]),
    }
    train = glue.draw(settings, "train", options["train"], options["share"])
    test = glue.draw(settings, "dev", options["test"], 0.0)
    model = glue.tuned(train.batches, settings)
    tuning = process_time() - start
    influence = EkfacInfluence(model, SequenceClassification()).fit(train.batches)
    G = joined(list(influence.training_gradients_by_block()))
    V = joined([influence.loss_gradients_by_block(batch) for batch in test.batches])
    each = [influence.training_influences(batch) for batch in test.batches]
    means = {"ekfac": torch.cat(each).mean(0)} | mean_influences(G, V)
    losses = influence.losses(train.batches).numpy()
    return {
        **{name: options[name] for name in ("task", "rank", "seed")},
        "accuracy": round(glue.accuracy(model, test.batches), 4),
        "training loss": round(float(losses.mean()), 4),
        "correlation": correlations(means),
        "auc": aucs(means, G, V, losses, train.flipped, further=options["rank"] == FURTHER),
        "cpu seconds": {"tuning": round(tuning), "all": round(process_time() - start)},
    }


def joined(parts: list[Any]) -> Rows:
    return {block: torch.cat([part[block] for part in parts]) for block in parts[0]}


def mean_influences(G: Rows, V: Rows) -> dict[str, Tensor]:
    """Of each method the mean influence of each training sample on the test samples, (n,)."""
    v = mean_row(V)
    influences = {method: fitted(method, G) for method in METHODS}
    influences["lissa, 10 steps"] = fitted("lissa", G, iterations=10)
    found = {
        name: influence.training_influences(*side_by_side(v))[0]
        for name, influence in influences.items()
    }
    damping = dict(zip(G, influences["exact"].damping.values(), strict=True))
    return found | {"lissa, published": published_lissa(G, v, damping)[0]}


def correlations(means: dict[str, Tensor]) -> dict[str, list[float]]:
    """With the exact inverse's mean influences over the training samples: Pearson's, Spearman's."""
    exact = means["exact"].double().numpy()
    return {
        name: [round(float(measure(mean.double().numpy(), exact)[0]), 4) for measure in MEASURES]
        for name, mean in means.items()
        if name != "exact"
    }


MEASURES = (pearsonr, spearmanr)


def aucs(
    means: dict[str, Tensor],
    G: Rows,
    V: Rows,
    losses: np.ndarray,
    flipped: np.ndarray,
    *,
    further: bool,
) -> dict[str, float]:
    """The chance that a flipped sample looks more suspicious than another, by each score."""
    suspicions = {name: -mean.double().numpy() for name, mean in means.items()}
    suspicions["training loss"] = losses
    for method in ("datainf", "exact") if further else ():
        influence = fitted(method, G)
        own = influence.self_influences().double().numpy()
        relative = relative_influence(means[method].double().numpy(), own)
        median = influence.training_influences(*side_by_side(V)).median(0).values.numpy()
        suspicions |= {
            f"{method}, median": -median,
            f"{method}, self": own,
            f"{method}, relative": -relative,
            f"{method}, suspicion": suspicion_ranks(losses, relative),
        }
    return {name: round(mislabel_auc(each, flipped), 4) for name, each in suspicions.items()}


def of_all_runs(options: dict[str, Any]) -> dict[str, Any]:
    model = "all-MiniLM-L6-v2" if options["model"] is None else Path(options["model"]).name
    return {n: v for n, v in options.items() if n != "folder_of_data"} | {"model": model}


if __name__ == "__main__":
    main()
