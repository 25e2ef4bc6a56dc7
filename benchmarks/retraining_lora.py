"""How well scores predict tuning MiniLM by LoRA again: every method, λ and sum over seeds.

python benchmarks/retraining_lora.py --glue DIR [--out results.json] [--settings sst2-top ...]

DIR holds SST-2 and MRPC as GLUE's files, train.tsv and dev.tsv. Adapters have rank 4, on query and
value; the head is tuned too, and influences are those of the adapters. There is no dropout, so that
all below the first layer with adapters is computed once. What is finished is written at once, and
retrained losses are kept beside --out.
"""

import argparse
import copy
import csv
import json
import time
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

warnings.filterwarnings("ignore")

from pydvl_datainf import SequenceClassification  # noqa: E402
from pydvl_datainf.demo.packages import model_folder  # noqa: E402
from pydvl_datainf.influence.by_name import METHODS  # noqa: E402
from retrained import measure, similarities  # noqa: E402

TRAIN, TEST = 400, 100
RANK, BATCH, RATE = 4, 20, 1e-3

SCORED_SEEDS = range(100, 105)
"""Of the models whose influences are measured; retrainings have other seeds, 0 and 1."""


@dataclass(frozen=True)
class Setting:
    """What is tuned on what.

    Attributes:
        task: SST-2 or MRPC.
        first: the first layer with adapters.
        tokens: texts of at most so many are taken; pairs are cut there.
        epochs: of tuning.
    """

    task: str
    first: int
    tokens: int
    epochs: int


SETTINGS = {
    "sst2-top": Setting("SST-2", first=3, tokens=12, epochs=6),
    "sst2-all": Setting("SST-2", first=0, tokens=12, epochs=6),
    "mrpc-top": Setting("MRPC", first=3, tokens=32, epochs=6),
}


class Top(nn.Module):
    """The layers of a BERT from the first one with adapters, and the head."""

    def __init__(self, model, first):
        super().__init__()
        self.layers = model.bert.encoder.layer[first:]
        self.pooler, self.classifier = model.bert.pooler, model.classifier

    def features(self, hidden, mask):
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.pooler(hidden)

    def forward(self, hidden, mask):
        return SimpleNamespace(logits=self.classifier(self.features(hidden, mask)))


@lru_cache(maxsize=1)
def base():
    folder = model_folder()
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def texts_of(folder, setting, split, count):
    """So many texts, drawn at random and alike for each call, and their labels."""
    _, tokenizer = base()
    with (Path(folder) / setting.task / f"{split}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    if setting.task == "SST-2":
        rows = [row for row in rows if len(tokenizer(row[0])["input_ids"]) <= setting.tokens]
    chosen = rows[:count]
    return [row[:-1] for row in chosen], torch.tensor([int(row[-1]) for row in chosen])


@lru_cache(maxsize=1)
def load(folder, setting):
    """Training and test samples as batches: hidden states below the adapters, mask and labels."""
    model, tokenizer = base()
    found = []
    for split, count in (("train", TRAIN), ("dev", TEST)):
        texts, labels = texts_of(folder, setting, split, count)
        cut = {"truncation": True, "max_length": setting.tokens, "padding": "max_length"}
        tokens = tokenizer(*zip(*texts, strict=True), return_tensors="pt", **cut)
        with torch.no_grad():
            states = model.bert(**tokens, output_hidden_states=True).hidden_states
        mask = (1.0 - tokens["attention_mask"][:, None, None].float()) * -1e9
        found.append({"hidden": states[setting.first].clone(), "mask": mask, "labels": labels})
    return found


def taken(batch, indices):
    return {name: tensor[indices] for name, tensor in batch.items()}


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned; picklable, so that other processes can."""

    setting: Setting
    glue: str

    def fit(self, indices, seed):
        """A model tuned on some of the texts."""
        return self.tune(indices, seed)[0]

    def tune(self, indices, seed):
        """The same, and the optimizer that tuned it."""
        setting = self.setting
        train = taken(load(self.glue, setting)[0], torch.as_tensor(indices))
        torch.manual_seed(seed)
        model = copy.deepcopy(base()[0])
        model.classifier.reset_parameters()
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=RANK,
            lora_alpha=RANK,
            target_modules=["query", "value"],
            layers_to_transform=list(range(setting.first, 6)),
        )
        top = Top(get_peft_model(model, config).base_model.model, setting.first).eval()
        optimizer = torch.optim.AdamW([p for p in top.parameters() if p.requires_grad], lr=RATE)
        for _ in range(setting.epochs):
            for indices in torch.randperm(len(train["labels"])).split(BATCH):
                optimizer.zero_grad()
                losses(top, taken(train, indices)).mean().backward()
                optimizer.step()
        for name, parameter in top.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return top, optimizer

    def __call__(self, indices, seed):
        """The losses of the test texts."""
        torch.set_num_threads(1)
        model = self.fit(indices, seed)
        with torch.no_grad():
            return losses(model, load(self.glue, self.setting)[1]).numpy()


def losses(model, batch):
    logits = model(batch["hidden"], batch["mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def scores_of(model, method, train, test, **settings):
    """Influences, (m, n)."""
    influence = METHODS[method](model, SequenceClassification(), **settings)
    influence.fit([taken(train, part) for part in torch.arange(TRAIN).split(100)])
    return influence.training_influences(test).numpy()


def measured(name, recipe, options):
    """The table of one setting, and what it says as numbers."""
    began = time.monotonic()
    train, test = load(recipe.glue, recipe.setting)
    models = [recipe.fit(np.arange(TRAIN), seed) for seed in SCORED_SEEDS]
    with torch.no_grad():
        right = (models[0](test["hidden"], test["mask"]).logits.argmax(1) == test["labels"]).float()
        features = [models[0].features(x["hidden"], x["mask"]).numpy() for x in (test, train)]
    accuracy = float(right.mean())
    told = asdict(recipe.setting) | {"rank": RANK, "batch": BATCH, "rate": RATE}
    told |= {"train": TRAIN, "test": TEST, "torch": torch.__version__}
    found = measure(
        f"{name}: accuracy {accuracy:.3f}",
        models,
        lambda model, method, **settings: scores_of(model, method, train, test, **settings),
        similarities(features, (test["labels"].numpy(), train["labels"].numpy())),
        recipe,
        told,
        options.out.parent / f"{name}.bank",
        options.subsets,
    )
    print(f"{time.monotonic() - began:.0f} seconds")
    return told | {"accuracy": round(accuracy, 4)} | found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--out", type=Path, default=Path("retraining-lora/results.json"))
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.settings:
        recipe = Recipe(SETTINGS[name], str(Path(options.glue).resolve()))
        found[name] = measured(name, recipe, options)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
