"""Models of jobs, tuned again, and the tests' own loops that tune them plainly in float64."""

import json
import random
import warnings

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.retraining import Retraining
from tiny import answer_loss, classification_loss
from tuned import sums, tokenizer

RECIPE = {
    "epochs": 3,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "weight_decay": 0.1,
    "schedule": "constant",
    "dropout": False,
    "seed": 5,
}
LORA = {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}


def reviews(count):
    return [
        {"text": f"It is {i * i * i}." * (1 + i % 3), "label": ("bad", "good")[i % 2]}
        for i in range(count)
    ]


def retraining(folder, fields, **training):
    (folder / "job.yaml").write_text(json.dumps({**fields, "training": {**RECIPE, **training}}))
    return Retraining(read_job(folder / "job.yaml", {}), folder)


# The tests' own loops


def adapted(model, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, LoraConfig(**kwargs))


def classifier(tuned, seed):
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(
        tuned.encoder, num_labels=2, dtype=torch.float64
    )
    return adapted(base, **LORA)


def causal_model(tuned, seed):
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(tuned.causal, dtype=torch.float64)
    return adapted(
        base, task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]
    )


def review_batch(records):
    texts = tokenizer()([r["text"] for r in records], padding=True, return_tensors="pt")
    return {**texts, "labels": torch.tensor([r["label"] == "good" for r in records]).long()}


def sum_batch(record):
    words = tokenizer()
    ids = words(record["prompt"] + record["answer"])["input_ids"] + [words.eos_token_id]
    start = len(words(record["prompt"])["input_ids"])
    labels = [-100] * start + ids[start:]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}


def orders(positions, seed, epochs=3, batch_size=4):
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(positions, batch_size, shuffle=True, generator=order, collate_fn=list)
    return [batch for _ in range(epochs) for batch in loader]


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def tuned_plainly(model, batches, loss_of, optimizer, rate=lambda step: 1.0, clip=None):
    """One pass a sample, in whichever mode the model is."""
    base = optimizer.param_groups[0]["lr"]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = base * rate(step)
        losses = [loss_of(model, i) for i in batch]
        gradients = torch.autograd.grad(sum(losses) / len(losses), trained(model))
        norm = sum(g.square().sum() for g in gradients).sqrt()
        shrink = 1.0 if clip is None else min(1.0, clip / (float(norm) + 1e-6))  # as torch
        for parameter, gradient in zip(trained(model), gradients, strict=True):
            parameter.grad = shrink * gradient
        optimizer.step()
    return model


def adamw(model):
    return torch.optim.AdamW(trained(model), lr=0.02, weight_decay=0.1)


def review_loss(model, i):
    return classification_loss(model, review_batch([reviews(10)[i]]))


def sum_loss(model, i):
    return answer_loss(model, sum_batch(sums(10)[i]))


def review_losses(model):
    with torch.no_grad():
        return [review_loss(model.eval(), i).item() for i in range(5)[::-1]]


def sum_losses(model):
    with torch.no_grad():
        return [sum_loss(model.eval(), i).item() for i in range(4)[::-1]]


def close(found, exact):
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=0)


def tuned_copy(folder, target):
    path = target / folder.name
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def states():
    return (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )
