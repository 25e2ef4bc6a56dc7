"""Which preference pairs of a tuned language model are swapped?

python benchmarks/preference/swapped.py --out results
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import dpo
import numpy as np
import torch
from batches import Batch, EncodedPairs, encode
from borrowed import influential, models, tuning
from pairs import Pair, draw_pairs
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm.auto import tqdm

from pydvl_datainf import DataInfInfluence
from pydvl_datainf.demo.scoring import Scores
from pydvl_datainf.evaluation import Floats, mislabel_auc
from pydvl_datainf.objectives.preference import Preference

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

HUGE = 1e10  # a damping so many times the usual one makes the inverse 1/λ to about a millionth
TUNING = (
    "model prompt_format dtype device rank alpha targets beta epochs learning_rate batch_size "
    "gradient_batch_size seed warm_up warm_up_rate"
)


@click.command(context_settings={"show_default": True})
@click.option("--train", default=50, help="Training pairs of each kind of defect.")
@click.option("--test", default=10, help="Test pairs of each kind, none of them swapped.")
@click.option("--share", default=0.2, help="Of the training pairs that are swapped.")
@click.option("--model", default=models.SMOLLM2, help="A folder or a name, for transformers.")
@click.option("--prompt-format", default="{prompt}\n", help="What the answer follows on.")
@click.option("--dtype", default="float32", help="Of the frozen weights.")
@click.option("--device", default="cpu")
@click.option("--rank", default=4)
@click.option("--alpha", default=8)
@click.option("--targets", default="q_proj,v_proj", help="Layers with adapters, by commas.")
@click.option("--warm-up", default=0, help="Epochs of supervised tuning on the chosen answers.")
@click.option("--warm-up-rate", default=5e-4, help="The largest learning rate in them.")
@click.option("--beta", default=0.1, help="Of the preference loss.")
@click.option("--epochs", default=2)
@click.option("--learning-rate", default=1e-3, help="The largest; it rises and falls linearly.")
@click.option("--batch-size", default=4, help="Pairs, in tuning.")
@click.option("--gradient-batch-size", default=8, help="Pairs, in everything else.")
@click.option("--seed", default=0)
@click.option("--threads", default=torch.get_num_threads())
@click.option("--cache", type=click.Path(path_type=Path), default="~/.cache/pydvl-datainf")
@click.option("--tune-only", is_flag=True, help="Print the losses by epoch and stop.")
@click.option("--out", type=click.Path(path_type=Path), default="preference-results")
def main(cache: Path, out: Path, threads: int, tune_only: bool, **settings: Any) -> None:
    """Tunes the model, computes all scores and writes OUT/swapped.json."""
    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    report = {"settings": settings, "machine": influential.machine(threads)}
    report |= run(settings, cache.expanduser(), tune_only)
    if not tune_only:
        out.mkdir(parents=True, exist_ok=True)
        (out / "swapped.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def run(settings: dict[str, Any], cache: Path, tune_only: bool) -> dict[str, Any]:
    """Everything but the printing."""
    seconds: dict[str, float] = {}
    size, device = settings["gradient_batch_size"], settings["device"]
    drawn = ("train", "test", "share", "seed")
    drawn_pairs = draw_pairs(**{name: settings[name] for name in drawn})
    with influential.timed("load", seconds):
        folder = models.model_folder(settings["model"], cache)
        tokenizer = models.load_tokenizer(folder)
        model = with_adapters(models.load_base(folder, settings["dtype"], device), settings)
    (pairs, train), (tests, test) = (
        encode(each, tokenizer, settings["prompt_format"]) for each in drawn_pairs
    )
    if settings["warm_up"]:
        with influential.timed("warm-up", seconds):
            model = warmed_up(model, train, settings, cache)
    with influential.timed("reference", seconds):
        train, test = (each.with_reference(model.eval(), size, device) for each in (train, test))
    chosen = {name: settings[name] for name in TUNING.split()}
    record = dpo.tuned(model, train, test, chosen, cache)
    seconds["tuning"] = record.pop("seconds")
    report = {
        "losses by epoch": record,
        "test pairs": quality(model, test, tests, settings),
        "sizes": sizes(model, train, pairs),
    }
    if not tune_only:
        report |= swaps(all_suspicions(model, train, test, settings, seconds), pairs)
    return report | {"seconds": {part: round(s, 1) for part, s in seconds.items()}}


def with_adapters(base: nn.Module, settings: dict[str, Any]) -> nn.Module:
    targets = tuple(settings["targets"].split(","))
    return models.with_lora(base, settings["rank"], settings["alpha"], targets)


def warmed_up(model: Any, train: EncodedPairs, settings: dict[str, Any], cache: Path) -> nn.Module:
    """The model, tuned on the answers that are given as chosen, with new adapters."""
    names = ("model", "dtype", "rank", "alpha", "targets", "batch_size", "seed", "device")
    chosen = {name: settings[name] for name in names}
    chosen |= {"epochs": settings["warm_up"], "learning_rate": settings["warm_up_rate"]}
    tuning.tuned(model, train.sides["chosen"], chosen, cache)
    torch.manual_seed(settings["seed"])  # so that it does not matter whether tuning was cached
    return with_adapters(model.merge_and_unload(), settings)


def quality(
    model: nn.Module, encoded: EncodedPairs, pairs: Sequence[Pair], settings: dict[str, Any]
) -> dict[str, Any]:
    """How often the better answer is preferred, before and after, in all and by kind."""
    before, after = reference_gaps(encoded), dpo.gaps(model, encoded, settings).numpy()
    kinds = np.array([pair.kind for pair in pairs])
    found = {
        "more probable, before": before > 0,
        "more probable, after": after > 0,
        "gained more (implicit reward)": after > before,
    }
    return {
        name: {"all": float(right.mean())}
        | {kind: float(right[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())}
        for name, right in found.items()
    }


def reference_gaps(encoded: EncodedPairs) -> Floats:
    chosen, rejected = (encoded.reference[f"ref_{side}_logps"] for side in encoded.sides)
    return (chosen - rejected).numpy()


def all_suspicions(
    model: nn.Module,
    train: EncodedPairs,
    test: EncodedPairs,
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Floats]:
    """The scores of the demo, and by how much the rejected answer was or is more probable."""
    size, device = settings["gradient_batch_size"], settings["device"]
    fitted, queries = (pairs.to_batches(size, device) for pairs in (train, test))
    influence = DataInfInfluence(
        model, Preference(settings["beta"]), rows="memory", batch_size=size, progress=True
    )
    with influential.timed("fit", seconds):
        influence.fit(fitted)
    with influential.timed("influences", seconds):
        influences = all_influences(influence, queries)
    with influential.timed("self-influences", seconds):
        own = influence.self_influences().cpu().numpy()
    with influential.timed("Hessian-free", seconds):
        huge = {block: HUGE * damping for block, damping in influence.damping.items()}
        scaled = all_influences(influence.with_regularization(huge), queries).mean(0)
        influence.with_regularization(max(huge.values()))
        plain = all_influences(influence, queries).mean(0)
    with influential.timed("training losses", seconds):
        after = dpo.gaps(model, train, settings).numpy()
    margin = settings["beta"] * (after - reference_gaps(train))
    return Scores(influences, own, plain, np.logaddexp(0, -margin)).suspicions() | {
        "Hessian-free, scaled by 1/λ": -scaled,
        "Log-probability gap, untuned": -reference_gaps(train),
        "Log-probability gap, tuned": -after,
    }


def all_influences(influence: DataInfInfluence, queries: list[Batch]) -> Floats:
    """Of the training pairs on each test pair, (m, n)."""
    bar = tqdm(queries, desc="Influences", unit="batch")
    return torch.cat([influence.training_influences(batch) for batch in bar]).cpu().numpy()


def swaps(suspicions: dict[str, Floats], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The scores, which pairs are swapped, and the AUC of finding them, in all and by kind."""
    swapped, kinds = (np.array([getattr(p, name) for p in pairs]) for name in ("swapped", "kind"))
    masks = {"all": np.full(len(pairs), True)}
    masks |= {kind: kinds == kind for kind in dict.fromkeys(kinds.tolist())}
    return {
        "auc": {
            name: {part: mislabel_auc(each[m], swapped[m]) for part, m in masks.items()}
            for name, each in suspicions.items()
        },
        "swapped": np.flatnonzero(swapped).tolist(),
        "suspicions": {
            name: [float(f"{x:.6g}") for x in each] for name, each in suspicions.items()
        },
    }


def sizes(model: nn.Module, train: EncodedPairs, pairs: Sequence[Pair]) -> dict[str, Any]:
    texts = [encoded for side in train.sides.values() for encoded in side]
    prompt, answer = np.mean([[len(part) for part in text] for text in texts], axis=0)
    return {
        "swapped by kind": {
            kind: sum(p.swapped for p in pairs if p.kind == kind)
            for kind in dict.fromkeys(p.kind for p in pairs)
        },
        "trainable parameters": sum(p.numel() for p in dpo.trainable(model)),
        "mean tokens of a prompt": round(float(prompt), 1),
        "mean tokens of an answer": round(float(answer), 1),
    }


def show(report: dict[str, Any]) -> None:
    console = Console()
    for part in ("sizes", "seconds", "losses by epoch", "test pairs"):
        console.print(part, report[part])
    if "auc" in report:
        console.print(auc_table(report["auc"]))


def auc_table(rows: dict[str, dict[str, float]]) -> Table:
    parts = next(iter(rows.values()))
    table = Table("Score", *parts, title="Finding swapped pairs, AUC")
    for name, aucs in rows.items():
        table.add_row(name, *(f"{auc:.3f}" for auc in aucs.values()))
    return table


if __name__ == "__main__":
    main()
