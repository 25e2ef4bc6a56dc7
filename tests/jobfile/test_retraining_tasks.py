"""Models of other tasks and queries, tuned again: against loops of the tests' own, in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from pydvl_datainf import InfluenceRun
from pydvl_datainf.jobfile.preparation import prepare
from pydvl_datainf.jobfile.validation import recipe_of
from tiny import answer_loss, token_loss, translation_loss
from tuned import tokenizer, write_lines
from tuned_again import adamw, causal_model, close, orders, retraining, sum_batch, tuned_plainly

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


# Other tasks


def test_a_tagger(tuned, tmp_path):
    records = [
        {"words": [f"w{i}", "is", str(i)][: 1 + i % 3], "tags": [i % 2, 1, 0][: 1 + i % 3]}
        for i in range(8)
    ]
    write_lines(tmp_path / "train.jsonl", records)
    write_lines(tmp_path / "test.jsonl", records[:3])
    fields = {"task": "token-classification", "model": str(tuned.tagger), "parameters": "all"}
    fields |= {"train": "train.jsonl", "test": "test.jsonl", "out": "o", "dtype": "float64"}
    again = retraining(tmp_path, fields, base=str(tuned.encoder), trained="all")
    samples = again.prepared.material.train.samples

    def loss(model, i):
        return token_loss(model, samples.collate([samples[i]]))

    torch.manual_seed(5)
    model = AutoModelForTokenClassification.from_pretrained(
        tuned.encoder, num_labels=2, dtype=torch.float64
    ).eval()
    used = tuned_plainly(model, orders(range(8), 5), loss, adamw(model))
    with torch.no_grad():
        close(again(range(8)), [loss(used, i).item() for i in range(3)])


def test_a_translator(tmp_path):
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(words), **sizes, decoder_start_token_id=0, pad_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    records = [{"source": f"What is {i}?" * (1 + i % 2), "target": f"It is {i}."} for i in range(6)]
    write_lines(tmp_path / "train.jsonl", records)
    write_lines(tmp_path / "test.jsonl", records[:2])
    fields = {"task": "seq2seq-lm", "model": "base", "parameters": "all", "dtype": "float64"}
    fields |= {"train": "train.jsonl", "test": "test.jsonl", "out": "o"}
    again = retraining(tmp_path, fields, base="base", trained="all")

    def loss(model, i):
        source, target = (torch.tensor([words(records[i][s])["input_ids"]]) for s in records[i])
        inputs = F.pad(target[:, :-1], (1, 0))
        return translation_loss(
            model, {"input_ids": source, "decoder_input_ids": inputs, "labels": target}
        )

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base", dtype=torch.float64).eval()
    tuned_plainly(model, orders(range(6), 5), loss, adamw(model))
    with torch.no_grad():
        close(again(range(6)), [loss(model, i).item() for i in range(2)])


def test_preferences_have_the_reference_of_the_run(causal, tuned, tmp_path, monkeypatch):
    pairs = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f" {2 * i}.", "rejected": f" {3 * i}?"}
        for i in range(6)
    ]
    write_lines(tmp_path / "train.jsonl", pairs)
    write_lines(tmp_path / "test.jsonl", pairs[:2])
    fields = causal | {"task": "preference", "beta": 0.3}
    again = retraining(tmp_path, fields)
    prepare(again.job, tmp_path, False).run(
        str(tmp_path / "out.zarr"), overwrite=False, progress=False
    )
    stored = InfluenceRun(tmp_path / "out.zarr")
    base = AutoModelForCausalLM.from_pretrained(tuned.causal, dtype=torch.float64).eval()

    def log_p(model, i, kind):
        batch = sum_batch({"prompt": pairs[i]["prompt"], "answer": pairs[i][kind]})
        return -answer_loss(model, batch) * (batch["labels"] != -100).sum()

    def loss(model, i):
        with torch.no_grad():
            chosen, rejected = (log_p(base, i, kind).float() for kind in ("chosen", "rejected"))
        before = chosen.double() - rejected.double()  # batches have them in single precision
        now = log_p(model, i, "chosen") - log_p(model, i, "rejected")
        return F.softplus(-0.3 * (now - before))

    model = causal_model(tuned, 5).eval()
    tuned_plainly(model, orders(range(6), 5), loss, adamw(model))
    with torch.no_grad():
        close(again(range(6)), [loss(model, i).item() for i in range(2)])
    told = stored.metadata("train")["ref_chosen_logps"]
    samples = again.prepared.material.train.samples
    assert [samples[i]["ref_chosen_logps"] for i in range(6)] == list(told)


# Other questions


def test_a_job_that_asks_for_margins_is_measured_by_them(tmp_path, classes):
    of_loss = retraining(tmp_path, classes)
    losses = of_loss.of_tuned(), of_loss([0, 1, 2, 3], 1)
    asked = retraining(tmp_path, classes | {"query": "margin"})
    margins = asked.of_tuned(), asked([0, 1, 2, 3], 1)
    for loss, margin in zip(losses, margins, strict=True):
        # Of two classes: loss = log(1 + exp(−margin)), and asked for is minus the margin.
        np.testing.assert_allclose(np.log1p(np.exp(margin)), loss, rtol=1e-9)
        assert np.abs(margin - loss).min() > 1e-3
    assert recipe_of(asked) != recipe_of(of_loss)
