"""Which training samples matter to a tuned language model: of the query's class, or not?

python benchmarks/language/influential.py --task sentences --out results
"""

import json
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import answers
import click
import encoding
import methods
import models
import numpy as np
import torch
import transformers
import tuning
from generators import TASKS, Sample, draw_samples
from rich.console import Console
from rich.table import Table

from pydvl_datainf.evaluation import class_auc, class_recall

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


@click.command(context_settings={"show_default": True})
@click.option("--task", type=click.Choice(list(TASKS)), default="sentences")
@click.option("--classes", default=10)
@click.option("--train", default=30, help="Training samples of each class.")
@click.option("--test", default=8, help="Test samples of each class, the queries.")
@click.option("--model", default=models.SMOLLM2, help="A folder or a name, for transformers.")
@click.option("--prompt-format", default="{prompt}\n", help="What the answer follows on.")
@click.option("--dtype", default="float32", help="Of the frozen weights.")
@click.option("--device", default="cpu")
@click.option("--rank", default=8)
@click.option("--alpha", default=16)
@click.option("--targets", default="q_proj,v_proj", help="Layers with adapters, by commas.")
@click.option("--epochs", default=3)
@click.option("--learning-rate", default=2e-3, help="The largest; it rises and falls linearly.")
@click.option("--batch-size", default=4, help="In tuning.")
@click.option("--gradient-batch-size", default=16, help="In everything else.")
@click.option("--seed", default=0)
@click.option("--threads", default=torch.get_num_threads())
@click.option("--cache", type=click.Path(path_type=Path), default="~/.cache/pydvl-datainf")
@click.option("--out", type=click.Path(path_type=Path), default="language-results")
def main(cache: Path, out: Path, threads: int, **settings: Any) -> None:
    """Tunes the model, computes all scores and writes OUT/TASK.json."""
    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    report = {"settings": settings, "machine": machine(threads)}
    report |= run(settings, cache.expanduser())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{settings['task']}.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def run(settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Everything but the printing."""
    seconds: dict[str, float] = {}
    drawn = ("task", "classes", "train", "test", "seed")
    train, test = draw_samples(**{name: settings[name] for name in drawn})
    with timed("load", seconds):
        folder = models.model_folder(settings["model"], cache)
        tokenizer = models.load_tokenizer(folder)
        base = models.load_base(folder, settings["dtype"], settings["device"])
        targets = tuple(settings["targets"].split(","))
        model = models.with_lora(base, settings["rank"], settings["alpha"], targets)
    train, train_ids = encoding.encode(train, tokenizer, settings["prompt_format"])
    test, test_ids = encoding.encode(test, tokenizer, settings["prompt_format"])
    learnt = learning(model, tokenizer, test, train_ids, test_ids, settings, cache, seconds)
    scores = all_scores(model, train, test, train_ids, test_ids, settings, seconds)
    return {
        "sizes": sizes(model, train_ids, test_ids),
        "seconds": {part: round(s, 1) for part, s in seconds.items()},
        **learnt,
        "methods": {name: quality(each, train, test) for name, each in scores.items()},
    }


TUNING = "model prompt_format dtype device rank alpha targets epochs learning_rate batch_size seed"


def learning(
    model: torch.nn.Module,
    tokenizer: Any,
    test: list[Sample],
    train_ids: list[encoding.Tokens],
    test_ids: list[encoding.Tokens],
    settings: dict[str, Any],
    cache: Path,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Tunes, and tells what the model knows of the test samples before and after."""
    size, device = settings["gradient_batch_size"], settings["device"]
    with timed("test loss before", seconds):
        before = tuning.answer_losses(model, test_ids, settings)
    with timed("tuning", seconds):
        chosen = {name: settings[name] for name in TUNING.split()}
        losses, was_cached = tuning.tuned(model, train_ids, chosen, cache)
    with timed("test loss after", seconds):
        after = tuning.answer_losses(model, test_ids, settings)
    with timed("answers", seconds):
        given = answers.greedy_answers(model, tokenizer, test_ids, size, device)
    return {
        "adapter": "read from the cache" if was_cached else "tuned",
        "training_loss_by_epoch": [round(loss, 4) for loss in losses],
        "test_loss": {"before": before, "after": after},
        "accuracy": float(np.mean([a == s.answer for a, s in zip(given, test, strict=True)])),
        "accuracy_by_class": answers.accuracy_by_class(test, given),
        "examples": [[s.prompt, s.answer, a] for s, a in zip(test, given, strict=True)][:20],
    }


def all_scores(
    model: torch.nn.Module,
    train: list[Sample],
    test: list[Sample],
    train_ids: list[encoding.Tokens],
    test_ids: list[encoding.Tokens],
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, methods.Scores]:
    """The scores of every method."""
    size, device = settings["gradient_batch_size"], settings["device"]
    fitted, queries = (encoding.to_batches(ids, size, device) for ids in (train_ids, test_ids))
    with timed("DataInf", seconds):
        scores, damping = methods.datainf(model, fitted, queries)
    with timed("gradients, again", seconds):
        G, V = methods.gradient_rows(model, fitted), methods.gradient_rows(model, queries)
    with timed("Hessian-free", seconds):
        scores |= methods.hessian_free(V, G, damping)
    with timed("exact inverse", seconds):
        scores["Exact inverse"] = methods.exact(V, G, damping)
    with timed("hidden states", seconds):
        of_train = methods.hidden_states(model, fitted, train_ids)
        of_test = methods.hidden_states(model, queries, test_ids)
    for name, t, q in zip(
        ("last prompt token", "mean over tokens"), of_train, of_test, strict=True
    ):
        scores[f"RepSim, {name}"] = methods.state_similarity(q, t)
    return scores | methods.words_similarity(test, train)


def quality(scores: methods.Scores, train: list[Sample], test: list[Sample]) -> dict[str, Any]:
    """AUC and recall: mean and standard deviation over queries, and the mean in each class."""
    queried, trained = (np.array([s.label for s in samples]) for samples in (test, train))
    found = {}
    for name, measure in (("auc", class_auc), ("recall", class_recall)):
        each = measure(scores, queried, trained)
        by_class = {label: float(each[queried == label].mean()) for label in dict.fromkeys(queried)}
        found[name] = {"mean": each.mean(), "std": each.std(), "by_class": by_class}
    return found


def sizes(
    model: torch.nn.Module, train_ids: list[encoding.Tokens], test_ids: list[encoding.Tokens]
) -> dict[str, float]:
    lengths = [[len(part) for part in tokens] for tokens in train_ids]
    prompt, answer = np.mean(lengths, axis=0)
    return {
        "training samples": len(train_ids),
        "queries": len(test_ids),
        "trainable parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "mean tokens of a prompt": round(float(prompt), 1),
        "mean tokens of an answer": round(float(answer), 1),
    }


def machine(threads: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"python": platform.python_version(), "threads": threads, "GPU": gpu, **versions}


@contextmanager
def timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[part] = perf_counter() - start


def show(report: dict[str, Any]) -> None:
    console, losses = Console(), report["training_loss_by_epoch"]
    console.print(report["sizes"], report["seconds"])
    console.print(f"training loss {losses[0]:.3f} to {losses[-1]:.3f}, test {report['test_loss']}")
    console.print(f"exact answers {report['accuracy']:.2f}", report["accuracy_by_class"])
    table = Table("", "AUC", "recall", title=report["settings"]["task"])
    for name, each in report["methods"].items():
        cells = [f"{each[m]['mean']:.3f} ± {each[m]['std']:.3f}" for m in ("auc", "recall")]
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
