"""What other implementations of DataInf do with a transformers model, and by how much they err.

python benchmarks/peers/peers.py --help

Two small jobs (a causal language model and a classifier, both with LoRA, in padded batches of
unequal lengths) are given to this package, to pyDVL's own class and to dattri: first as their data
comes, then with the workarounds that their documentation shows, each in a function of its own. What
is raised is the result of an attempt. Numbers are compared with the formula in float64.
"""

import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # dattri's progress bars; read when tqdm is imported

import click
import torch
from rich.console import Console
from rich.table import Table
from setting import adapted, version_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import dense
from pydvl_datainf import CausalLM, DataInfInfluence, SequenceClassification

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)
logging.set_verbosity_error()

TRAIN, TEST, BATCH_SIZE = 22, 5, 8  # batches of 8, 8 and 6
IGNORED = -100
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}

Sample = dict[str, Tensor]
Collate = Callable[[list[Sample]], Any]


@dataclass(frozen=True)
class Job:
    """One task: its model, its data and its loss.

    Args:
        name: for the table.
        build: makes the model, with "sdpa" or "eager" attention.
        loss: of logits (B, ...) and labels (B, ...), the mean over the samples.
        objective: the same, as this package takes it.
        train: samples of unequal lengths.
        test: samples of unequal lengths.
    """

    name: str
    build: Callable[[str], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    objective: Any
    train: list[Sample]
    test: list[Sample]

    def loader(self, side: str, collate: Collate, batch_size: int = BATCH_SIZE) -> DataLoader:
        return DataLoader(getattr(self, side), batch_size, collate_fn=collate)


# The jobs


def language_job() -> Job:
    """Answers after prompts, of which only the answers' tokens count."""
    return Job("Llama", llama, answer_loss, CausalLM(), texts(TRAIN), texts(TEST))


def classification_job() -> Job:
    train, test = labelled(texts(TRAIN)), labelled(texts(TEST))
    return Job("BERT", bert, F.cross_entropy, SequenceClassification(), train, test)


def texts(length: int) -> list[Sample]:
    """Random tokens, 4 to 12 of them, of which the second half is the answer."""
    samples = []
    for i in range(length):
        ids = torch.randint(1, SIZES["vocab_size"], (4 + (5 * i) % 9,))
        labels = ids.clone()
        labels[: len(ids) // 2] = IGNORED
        samples.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return samples


def labelled(samples: list[Sample]) -> list[Sample]:
    return [sample | {"labels": torch.randint(0, 2, ())} for sample in samples]


def llama(attention: str) -> nn.Module:
    config = LlamaConfig(
        **SIZES, num_key_value_heads=2, pad_token_id=0, attn_implementation=attention
    )
    return adapted(LlamaForCausalLM, config, ["q_proj", "v_proj"])


def bert(attention: str) -> nn.Module:
    return adapted(
        BertForSequenceClassification,
        BertConfig(**SIZES, num_labels=2, attn_implementation=attention),
        ["query", "value"],
    )


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the answer's tokens; logits (B, T, vocabulary), labels (B, T)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


# Batches


def mapping(samples: list[Sample]) -> dict[str, Tensor]:
    """As transformers takes them: padded on the right to the longest of the batch."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {
        name: pad_sequence([s[name] for s in samples], batch_first=True, padding_value=value)
        if samples[0][name].ndim
        else torch.stack([s[name] for s in samples])
        for name, value in fill.items()
    }


def ids_mask_labels(samples: list[Sample]) -> tuple[Tensor, ...]:
    return tuple(mapping(samples).values())


def stacked_pair(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Token ids and mask in one tensor x (B, 2, T), as in pyDVL's notebook, and the labels."""
    ids, mask, labels = ids_mask_labels(samples)
    return torch.stack([ids, mask], 1), labels


def added_mask(model: nn.Module, mask: Tensor) -> Tensor:
    """The mask (B, T) as transformers would make it: what is added to scores, (B, 1, T, T)."""
    positions = mask.shape[1]
    seen = mask[:, None, None, :].bool().expand(-1, 1, positions, -1)
    if model.config.model_type == "llama":
        seen = seen & torch.ones(positions, positions, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


# What is right


def names_of(model: nn.Module) -> list[str]:
    """The LoRA matrices, each a block."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def exact_rows(job: Job, side: str) -> dict[str, Tensor]:
    """For each block float64 gradients, one unpadded sample and backward pass after another."""
    model = dense.in_float64(job.build("eager"))

    def loss(model: nn.Module, batch: Sample) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return job.loss(model(**inputs).logits, batch["labels"])

    names = names_of(model)
    rows = [
        {name: dense.gradients(model, loss, mapping([sample]), [name]) for name in names}
        for sample in getattr(job, side)
    ]
    return {name: torch.cat([row[name] for row in rows]) for name in names}


class Truth:
    """The formula in float64: for one λ, for the λ of the paper, and for some of the blocks.

    Args:
        job: what is computed.
    """

    def __init__(self, job: Job):
        self.train, self.test = exact_rows(job, "train"), exact_rows(job, "test")
        self.automatic = {b: dense.automatic_damping(rows) for b, rows in self.train.items()}
        self.λ = sum(self.automatic.values()) / len(self.automatic)

    def with_one_damping(self) -> Tensor:
        return self._scores(dict.fromkeys(self.train, self.λ))

    def with_automatic_damping(self) -> Tensor:
        return self._scores(self.automatic)

    def of_value_blocks(self) -> Tensor:
        return self._scores({block: self.λ for block in self.train if is_value(block)})

    def _scores(self, damping: dict[str, float]) -> Tensor:
        test = {block: self.test[block] for block in damping}
        return dense.influences(test, self.train, self.train, damping)

    def without_inverse(self) -> Tensor:
        """v·g/λ: what a method gives that ignores the training data."""
        return sum(self.test[b] @ g.T for b, g in self.train.items()) / self.λ


# Attempts: each returns scores, test samples by training samples


def ours(job: Job, truth: Truth, *, automatic: bool = False) -> Tensor:
    damping = "auto" if automatic else truth.λ
    influence = DataInfInfluence(job.build("sdpa"), job.objective, damping)
    influence.fit(job.loader("train", mapping))
    return influence.training_influences(mapping(job.test))


def pydvl_mappings(job: Job, truth: Truth) -> Tensor:
    model = job.build("sdpa")
    influence = pydvl_class(model, job, truth.λ).fit(job.loader("train", mapping))
    return influence.influences(mapping(job.test), None, mapping(job.train), None)


def pydvl_mapping_and_labels(job: Job, truth: Truth) -> Tensor:
    def pair(samples: list[Sample]) -> tuple[dict[str, Tensor], Tensor]:
        batch = mapping(samples)
        return batch, batch.pop("labels")

    loader = job.loader("train", pair)
    influence = pydvl_class(job.build("sdpa"), job, truth.λ).fit(loader)
    return influence.influences(*pair(job.test), *pair(job.train))


def pydvl_pairs(
    job: Job,
    truth: Truth,
    *,
    attention: str = "eager",
    mask: str = "given",
    batch_size: int = BATCH_SIZE,
    at_once: int = TEST,
    automatic: bool = False,
) -> Tensor:
    """Pairs (x, y) and a wrapper; `at_once` test samples in a call."""
    model = Logits(job.build(attention), mask)
    damping = {f"inner.{b}": λ for b, λ in truth.automatic.items()} if automatic else truth.λ
    loader = job.loader("train", stacked_pair, batch_size)
    influence = pydvl_class(model, job, damping).fit(loader)
    parts = []
    for x, y in job.loader("test", stacked_pair, at_once):
        factors = influence.influence_factors(x, y)
        scores = [influence.influences_from_factors(factors, *batch) for batch in loader]
        parts.append(torch.cat(scores, 1))
    return torch.cat(parts)


def pydvl_class(model: nn.Module, job: Job, damping: Any) -> Any:
    from pydvl.influence.torch import InverseHarmonicMeanInfluence

    blocks = OrderedDict((name, [name]) for name in names_of(model))
    return InverseHarmonicMeanInfluence(model, job.loss, damping, blocks)


class Logits(nn.Module):
    """From token ids and mask in one tensor to logits; the mask is given, left out or added."""

    def __init__(self, inner: nn.Module, mask: str):
        super().__init__()
        self.inner, self.mask = inner, mask

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(**model_inputs(self.inner, x[:, 0], x[:, 1], self.mask)).logits


def model_inputs(model: nn.Module, ids: Tensor, mask: Tensor, how: str) -> dict[str, Tensor]:
    if how == "left out":
        return {"input_ids": ids}
    return {
        "input_ids": ids,
        "attention_mask": added_mask(model, mask) if how == "added" else mask,
    }


def dattri_mappings(job: Job, truth: Truth) -> Tensor:
    model = job.build("sdpa")

    def loss(parameters: dict[str, Tensor], batch: Sample) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        outputs = torch.func.functional_call(model, parameters, (), inputs)
        return job.loss(outputs.logits, batch["labels"])

    loaders = job.loader("train", mapping), job.loader("test", mapping)
    return dattri_scores(model, loss, *loaders, regularization=truth.λ)


def dattri_tuples(
    job: Job,
    truth: Truth,
    *,
    attention: str = "eager",
    mask: str = "given",
    **settings: Any,
) -> Tensor:
    """Tuples of token ids, mask and labels, as in dattri's own examples with GPT-2."""
    model = job.build(attention)

    def loss(parameters: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        inputs = model_inputs(model, *batch[:2], mask)
        outputs = torch.func.functional_call(model, parameters, (), inputs)
        return job.loss(outputs.logits, batch[2])

    loaders = job.loader("train", ids_mask_labels), job.loader("test", ids_mask_labels)
    return dattri_scores(model, loss, *loaders, **{"regularization": truth.λ} | settings)


def dattri_default_damping(job: Job, truth: Truth) -> Tensor:
    return dattri_tuples(job, truth, mask="added", regularization=0.0)


def dattri_values_only(job: Job, truth: Truth) -> Tensor:
    """`layer_name` chooses some of the trainable parameters."""
    names = [name for name in names_of(job.build("eager")) if is_value(name)]
    return dattri_tuples(job, truth, mask="added", layer_name=names)


def dattri_scores(
    model: nn.Module, loss: Callable[..., Tensor], train: Any, test: Any, **settings: Any
) -> Tensor:
    from dattri.algorithm import IFAttributorDataInf
    from dattri.task import AttributionTask

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorDataInf(task=task, **settings)
    attributor.cache(train)
    with torch.no_grad():
        return attributor.attribute(train, test).T  # it returns training by test samples


def is_value(name: str) -> bool:
    return "v_proj" in name or "value" in name


# The table


@dataclass(frozen=True)
class Attempt:
    """One way to get scores.

    Args:
        library: whose.
        what: was tried.
        compute: gives scores, or raises.
        exact: what they should be.
    """

    library: str
    what: str
    compute: Callable[[Job, Truth], Tensor]
    exact: Callable[[Truth], Tensor] = Truth.with_one_damping


ATTEMPTS = [
    Attempt("ours", "mappings, sdpa, mask", ours),
    Attempt(
        "ours",
        "the same, automatic λ",
        partial(ours, automatic=True),
        Truth.with_automatic_damping,
    ),
    Attempt("pyDVL", "mappings, sdpa, mask", pydvl_mappings),
    Attempt("pyDVL", "pairs of mapping and labels", pydvl_mapping_and_labels),
    Attempt("pyDVL", "(x, y), wrapper, sdpa, mask", partial(pydvl_pairs, attention="sdpa")),
    Attempt("pyDVL", "the same, eager", pydvl_pairs),
    Attempt("pyDVL", "the same, eager, no mask", partial(pydvl_pairs, mask="left out")),
    Attempt("pyDVL", "wrapper that adds a float mask", partial(pydvl_pairs, mask="added")),
    Attempt(
        "pyDVL",
        "  and one batch of all",
        partial(pydvl_pairs, mask="added", batch_size=TRAIN),
    ),
    Attempt(
        "pyDVL",
        "  and one test sample a call",
        partial(pydvl_pairs, mask="added", at_once=1),
    ),
    Attempt(
        "pyDVL",
        "  and that with equal batches",
        partial(pydvl_pairs, mask="added", at_once=1, batch_size=TRAIN // 2),
    ),
    Attempt(
        "pyDVL",
        "  and a λ per block",
        partial(pydvl_pairs, mask="added", automatic=True),
        Truth.with_automatic_damping,
    ),
    Attempt("dattri", "mappings, sdpa, mask", dattri_mappings),
    Attempt("dattri", "tuples, sdpa, mask", partial(dattri_tuples, attention="sdpa")),
    Attempt("dattri", "the same, eager", dattri_tuples),
    Attempt("dattri", "the same, eager, no mask", partial(dattri_tuples, mask="left out")),
    Attempt("dattri", "loss that adds a float mask", partial(dattri_tuples, mask="added")),
    Attempt("dattri", "  and its default damping", dattri_default_damping),
    Attempt("dattri", "  and layer_name: values only", dattri_values_only, Truth.of_value_blocks),
]


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of the data.")
def main(seed: int) -> None:
    """Makes all attempts and prints what came of them."""
    torch.set_num_threads(1)
    console = Console(width=160)
    packages = ("torch", "transformers", "peft", "pyDVL", "dattri")
    console.print(", ".join(f"{name} {version_of(name)}" for name in packages))
    torch.manual_seed(seed)
    table = Table("job", "library", "what was tried", "largest error, or what was raised")
    for job in (language_job(), classification_job()):
        truth = Truth(job)
        far = error(truth.without_inverse(), truth.with_one_damping())
        table.add_section()
        table.add_row(job.name, "-", f"v·g/λ in place of DataInf, λ = {truth.λ:.2g}", far)
        for attempt in ATTEMPTS:
            table.add_row(job.name, attempt.library, attempt.what, outcome(attempt, job, truth))
    console.print(table)


def outcome(attempt: Attempt, job: Job, truth: Truth) -> str:
    """The error of an attempt, relative to the largest score, or its exception."""
    if attempt.library == "dattri" and version_of("dattri") is None:
        return "not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = attempt.compute(job, truth)
    except Exception as raised:
        lines = str(raised).strip().splitlines() or [""]
        return f"{type(raised).__name__}: {lines[0][:150]}"
    return error(scores, attempt.exact(truth))


def error(scores: Tensor, exact: Tensor) -> str:
    if not scores.isfinite().all():
        return f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN"
    return f"{float((scores.double() - exact).abs().max() / exact.abs().max()):.1e}"


if __name__ == "__main__":
    main()
