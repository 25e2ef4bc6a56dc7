"""Table 2: do training samples of the query's class lead, in prompts that name it and in others?

python benchmarks/paper/detection.py [--small | --full] [--model FOLDER] [--out results]
"""

import json
from pathlib import Path
from time import process_time
from typing import Any

import click
import named
import numpy as np
import torch
from borrowed import encoding, generators, methods, models, tuning
from conditions import conditions
from given_rows import fitted, side_by_side

from pydvl_datainf.evaluation import class_auc, class_recall

SIZES = {"small": {"train": 2, "test": 1, "epochs": 1}, "full": {"train": 90, "test": 10}}
METHODS = ("datainf", "exact", "hessian-free", "scaled-hessian-free")
TUNING = "model prompt_format dtype device rank alpha targets epochs learning_rate batch_size seed"


@click.command(context_settings={"show_default": True})
@click.option("--tasks", default="maths,sentences")
@click.option("--train", default=8, help="Training samples of each of ten classes.")
@click.option("--test", default=3, help="Queries of each class.")
@click.option("--model", default=models.SMOLLM2, help="A folder or a name, for transformers.")
@click.option("--dtype", default="float32", help="Of the frozen weights.")
@click.option("--device", default="cpu")
@click.option("--rank", default=8)
@click.option("--alpha", default=16)
@click.option("--targets", default="q_proj,v_proj", help="Layers with adapters, by commas.")
@click.option("--epochs", default=3)
@click.option("--learning-rate", default=2e-3, help="The largest; it rises and falls linearly.")
@click.option("--batch-size", default=4, help="In tuning.")
@click.option("--gradient-batch-size", default=8, help="In everything else.")
@click.option("--seed", default=0)
@click.option("--small", is_flag=True, help="Minutes: two samples of each class.")
@click.option("--full", is_flag=True, help="The paper's 900 samples and 100 queries.")
@click.option("--cache", type=click.Path(path_type=Path), default="~/.cache/pydvl-datainf")
@click.option("--out", type=click.Path(path_type=Path), default="paper-results")
def main(tasks: str, small: bool, full: bool, cache: Path, out: Path, **settings: Any) -> None:
    """Writes OUT/detection.json, after each of the models anew."""
    torch.set_num_threads(1)
    settings |= SIZES["small"] if small else SIZES["full"] if full else {}
    settings["prompt_format"] = "{prompt}\n"
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for task in tasks.split(","):
        for kind in ("named", "not named"):
            found[f"{task}, class {kind}"] = run(task, kind, settings, cache.expanduser())
            told = settings | {"model": Path(settings["model"]).name}
            report = {"settings": told, "conditions": conditions(), "tasks": found}
            (out / "detection.json").write_text(json.dumps(report, indent=1) + "\n")
            print(task, kind, json.dumps(found[f"{task}, class {kind}"], indent=1), flush=True)


def run(task: str, kind: str, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Tunes one model on ten classes, and tells what each score finds in them."""
    start = process_time()
    torch.manual_seed(settings["seed"])
    folder = models.model_folder(settings["model"], cache)
    tokenizer = models.load_tokenizer(folder)
    base = models.load_base(folder, settings["dtype"], settings["device"])
    targets = tuple(settings["targets"].split(","))
    model = models.with_lora(base, settings["rank"], settings["alpha"], targets)
    sizes = (settings["train"], settings["test"], settings["seed"])
    if kind == "named":
        drawn = named.draw_samples(task, *sizes)
    else:
        drawn = generators.draw_samples(task, 10, *sizes)
    sides = [encoding.encode(side, tokenizer, settings["prompt_format"]) for side in drawn]
    (train, train_ids), (test, test_ids) = sides
    chosen = {name: settings[name] for name in TUNING.split()}
    losses, _ = tuning.tuned(model, train_ids, chosen, cache)
    scores = all_scores(model, train_ids, test_ids, settings)
    scores |= {"bag of words": methods.words_similarity(test, train)["Bag of words, prompt"]}
    return {
        "examples": [[sample.prompt, sample.answer] for sample in train[:3]],
        "training loss by epoch": [round(loss, 3) for loss in losses],
        "test loss": round(tuning.answer_losses(model, test_ids, settings), 3),
        "cpu seconds": round(process_time() - start),
        "scores": {name: quality(each, train, test) for name, each in scores.items()},
    }


def all_scores(
    model: torch.nn.Module,
    train_ids: list[encoding.Tokens],
    test_ids: list[encoding.Tokens],
    settings: dict[str, Any],
) -> dict[str, np.ndarray]:
    """Of each method the influences (m, n), from gradients that are computed once."""
    size, device = settings["gradient_batch_size"], settings["device"]
    sides = [encoding.to_batches(ids, size, device) for ids in (train_ids, test_ids)]
    G, V = (
        {block: rows.float().cpu() for block, rows in methods.gradient_rows(model, side).items()}
        for side in sides
    )
    queries = side_by_side(V)
    return {
        method: fitted(method, G).training_influences(*queries).double().numpy()
        for method in METHODS
    }


def quality(scores: np.ndarray, train: list[Any], test: list[Any]) -> dict[str, list[float]]:
    """AUC and recall, means over queries and their standard errors, by sign and by size alone."""
    queried, trained = (np.array([s.label for s in samples]) for samples in (test, train))
    found = {}
    for name, measure in (("auc", class_auc), ("recall", class_recall)):
        for way, values in (("signed", scores), ("absolute", np.abs(scores))):
            each = measure(values, queried, trained)
            error = each.std(ddof=1) / len(each) ** 0.5
            found[f"{name}, {way}"] = [round(float(x), 3) for x in (each.mean(), error)]
    return found


if __name__ == "__main__":
    main()
