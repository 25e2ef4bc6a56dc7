"""Which training pictures drive a held-out or generated picture: those of its class, or not?

python benchmarks/diffusion/drivers.py --task subject --labels shared --out results
"""

import json
import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import peft
import pictures
import sampling
import scores
import torch
from borrowed import influential
from denoiser import TARGETS, labels_of, noise_schedule
from gallery import draw_gallery
from learning import learning
from pictures import Pictures, to_batches
from rich.console import Console
from rich.table import Table
from tasks import NAMES, drawn_for
from torch import nn

from pydvl_datainf import Denoising
from pydvl_datainf.evaluation import class_auc, class_recall

warnings.filterwarnings("ignore", category=FutureWarning)

FIRST_SEED = {"held out": 1_000_000, "generated": 2_000_000}  # of noise of their own
LABELS = click.Choice(["shared", "own"])
NOISE = click.Choice(["own", "common"])
timed = influential.timed


@click.command(context_settings={"show_default": True})
@click.option("--task", type=click.Choice(list(NAMES)), default="subject")
@click.option("--labels", type=LABELS, default="shared", help="What the model is told of pictures.")
@click.option("--data", type=click.Path(path_type=Path), default=pictures.FOLDER)
@click.option("--base-steps", default=1000, help="Of training on the first six classes.")
@click.option("--base-learning-rate", default=2e-3)
@click.option(
    "--train", default=50, help="Training pictures of each of the four classes or styles."
)
@click.option("--test", default=8, help="Held-out pictures of each, queries.")
@click.option("--generate", default=24, help="Generated pictures, queries.")
@click.option("--sampling-steps", default=50)
@click.option("--rank", default=4)
@click.option("--alpha", default=4)
@click.option("--targets", type=click.Choice(list(TARGETS)), default="both")
@click.option("--steps", default=400, help="Of tuning.")
@click.option("--learning-rate", default=1e-2, help="The largest; it rises and falls linearly.")
@click.option("--batch-size", default=16, help="In tuning.")
@click.option("--timesteps", default=8, help="Noise levels in the loss that is differentiated.")
@click.option(
    "--noise", type=NOISE, default="own", help="In that loss: one draw a picture, or one for all."
)
@click.option("--gradient-batch-size", default=8)
@click.option("--seed", default=0)
@click.option("--threads", default=torch.get_num_threads())
@click.option("--tune-only", is_flag=True, help="Print the losses and stop.")
@click.option("--cache", type=click.Path(path_type=Path), default="~/.cache/pydvl-datainf")
@click.option("--out", type=click.Path(path_type=Path), default="diffusion-results")
def main(
    data: Path, cache: Path, out: Path, threads: int, tune_only: bool, **settings: Any
) -> None:
    """Trains, tunes, computes all scores and writes OUT/TASK-LABELS.json and .png."""
    torch.set_num_threads(threads)
    seconds: dict[str, float] = {}
    parts = [pictures.read_pictures(data, part) for part in ("train", "t10k")]
    train, held_out = (
        drawn_for(settings["task"], part, settings[name], settings["seed"])
        for part, name in zip(parts, ("train", "test"), strict=True)
    )
    schedule = noise_schedule()
    model, learnt = learning(
        schedule, parts[0], train, held_out, settings, cache.expanduser(), seconds
    )
    report = {"settings": settings, "machine": machine(threads), "seconds": seconds} | learnt
    if not tune_only:
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{name_of(settings)}.json"
        with timed("generated pictures", seconds):
            made, report["judge"] = sampling.generated(model, schedule, *parts, settings)
        report |= evaluate(model, train, {"held out": held_out, "generated": made}, report, file)
        file.write_text(json.dumps(rounded(report), indent=1) + "\n")
    show(rounded(report))


def evaluate(
    model: nn.Module,
    train: Pictures,
    queries: dict[str, Pictures],
    report: dict[str, Any],
    file: Path,
) -> dict[str, Any]:
    """The quality of all scores; draws the picture."""
    names = NAMES[report["settings"]["task"]]
    found = all_scores(model, train, queries, report["settings"], report["seconds"])
    draw_gallery(file.with_suffix(".png"), train, queries, found, names, each=1)
    return {
        "sizes": {
            "training pictures": len(train),
            **{name: len(query) for name, query in queries.items()},
            "trainable parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "all parameters": sum(p.numel() for p in model.parameters()),
        },
        "methods": {
            name: {method: quality(s, query, train, names) for method, s in found[name].items()}
            for name, query in queries.items()
        },
    }


def all_scores(
    model: nn.Module,
    train: Pictures,
    queries: dict[str, Pictures],
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, dict[str, scores.Scores]]:
    """The scores of every method for each set of queries."""
    objective = Denoising.from_scheduler(noise_schedule(), settings["timesteps"])
    kind, size = settings["labels"], settings["gradient_batch_size"]
    seeded = {"": (train, 0)} | {name: (q, FIRST_SEED[name]) for name, q in queries.items()}
    batches = {
        name: to_batches(each, labels_of(each.classes, kind), first, size)
        for name, (each, first) in seeded.items()
    }
    if settings["noise"] == "common":
        for batch in chain(*batches.values()):
            batch["seed"].zero_()
    with timed("gradients and their scores", seconds):
        found = scores.by_gradients(model, objective, batches.pop(""), batches)
    with timed("similarities", seconds):
        for name, query in queries.items():
            found[name] |= scores.by_similarity(model, train, query)
    return found


def quality(
    each: scores.Scores, query: Pictures, train: Pictures, names: Mapping[int, str]
) -> dict[str, Any]:
    """AUC and recall: mean and standard deviation over queries, and the mean in each class."""
    queried, trained = query.classes.numpy(), train.classes.numpy()
    found = {}
    for name, measure in (("auc", class_auc), ("recall", class_recall)):
        values = measure(each, queried, trained)
        by_class = {names[int(c)]: float(values[queried == c].mean()) for c in np.unique(queried)}
        found[name] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "by_class": by_class,
        }
    return found


def name_of(settings: dict[str, Any]) -> str:
    suffix = "-common-noise" if settings["noise"] == "common" else ""
    return f"{settings['task']}-{settings['labels']}{suffix}"


def machine(threads: int) -> dict[str, Any]:
    versions = {"diffusers": diffusers.__version__, "peft": peft.__version__}
    return influential.machine(threads) | versions


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def show(report: dict[str, Any]) -> None:
    console = Console()
    for name in ("seconds", "loss", "tuning_loss_by_tenth", "sizes", "judge"):
        console.print(name, report.get(name))
    for name, found in report.get("methods", {}).items():
        table = Table("", "AUC", "recall", title=name)
        for method, each in found.items():
            cells = [f"{each[m]['mean']:.3f} ± {each[m]['std']:.3f}" for m in ("auc", "recall")]
            table.add_row(method, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
