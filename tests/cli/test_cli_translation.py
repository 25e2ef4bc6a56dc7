"""`pydvl-datainf run` on translations, against the formula."""

import json

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import commands
from jobs import assert_right, done
from pydvl_datainf import InfluenceRun, Seq2SeqLM
from tuned import tokenizer, write_lines

pytestmark = pytest.mark.slow


def test_translations(tmp_path):
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(words), **sizes, decoder_start_token_id=0, pad_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    records = [{"source": f"What is {i}?" * (1 + i % 2), "target": f"It is {i}."} for i in range(6)]
    for name, count in (("train", 6), ("test", 2)):
        write_lines(tmp_path / f"{name}.jsonl", records[:count])
    job = {
        "task": "seq2seq-lm",
        "model": "model",
        "parameters": ["decoder.block.0.layer.0.SelfAttention.[qv].weight"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "max_tokens": 60,
    }
    done(tmp_path, job)

    def batch(count):
        source = words([r["source"] for r in records[:count]], padding=True, return_tensors="pt")
        target = words([r["target"] for r in records[:count]], padding=True, return_tensors="pt")
        labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)
        inputs = {"input_ids": source.input_ids, "attention_mask": source.attention_mask}
        return {**inputs, "labels": labels}

    stored = InfluenceRun(tmp_path / "out.zarr")
    assert_right(stored, model, Seq2SeqLM(), batch(2), batch(6))

    done(tmp_path, job | {"rows": "zarr", "out": "rows.zarr", "exact_sample": 0})
    kept, (source, target) = InfluenceRun(tmp_path / "rows.zarr"), records[1].values()
    args = ("ask", kept.store, "--prompt", source, "--answer", target, "--k", "6", "--by-token")
    result = commands.invoke(*args, "--format", "json", "--no-progress")
    assert result.exit_code == 0, result.output
    found = [{r["id"]: r["influence"] for r in q["helpful"]} for q in json.loads(result.stdout)]
    scores = np.mean([[token[i] for i in range(6)] for token in found], 0)
    bound = 1e-5 * np.abs(kept.scores[1]).max()  # in float32
    np.testing.assert_allclose(scores, kept.scores[1], rtol=0, atol=bound)
