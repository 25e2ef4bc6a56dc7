"""Models of jobs, tuned again: against loops of the tests' own, in float64."""

import math
import pickle

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tuned import changed
from tuned_again import (
    adamw,
    causal_model,
    classifier,
    close,
    orders,
    retraining,
    review_batch,
    review_loss,
    review_losses,
    reviews,
    states,
    sum_loss,
    sum_losses,
    trained,
    tuned_copy,
    tuned_plainly,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


# Against them


def test_an_adapter_with_a_new_head(classes, tuned, tmp_path):
    model = classifier(tuned, 5).eval()
    assert any("modules_to_save" in n for n, p in model.named_parameters() if p.requires_grad)
    before = review_losses(model)
    tuned_plainly(model, orders(range(10), 5), review_loss, adamw(model))
    found = retraining(tmp_path, classes)(range(10))
    close(found, review_losses(model))
    assert np.abs(found - before).max() > 1e-3  # the premise: there was something to learn


def test_an_adapter_of_a_causal_language_model(causal, tuned, tmp_path):
    model = causal_model(tuned, 7).eval()
    tuned_plainly(model, orders(range(10), 7), sum_loss, adamw(model))
    close(retraining(tmp_path, causal)(range(10), 2), sum_losses(model))


def test_dropout_as_an_ordinary_loop_has_it(classes, tuned, tmp_path):
    changed(tuned_copy(tuned.classes_adapter, tmp_path) / "adapter_config.json", lora_dropout=0.3)
    classes["adapter"] = "classes_adapter"
    model = classifier(tuned, 5)
    for layer in model.modules():
        if hasattr(layer, "lora_dropout") and len(layer.lora_dropout):
            layer.lora_dropout["default"] = torch.nn.Dropout(0.3)
    optimizer = adamw(model.train())
    for batch in orders(range(10), 5):
        optimizer.zero_grad()
        model(**review_batch([reviews(10)[i] for i in batch])).loss.backward()
        optimizer.step()
    found = retraining(tmp_path, classes, dropout=True)(range(10))
    close(found, review_losses(model))
    assert np.abs(found - retraining(tmp_path, classes)(range(10))).max() > 1e-3


@pytest.mark.parametrize("which", ["all", ["classifier.*", "*.layer.1.output.*"]])
def test_full_tuning(whole, tuned, tmp_path, which):
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(
        tuned.encoder, num_labels=2, dtype=torch.float64
    ).eval()
    for name, parameter in model.named_parameters():
        parts = ("classifier.", ".layer.1.output.")
        parameter.requires_grad_(which == "all" or any(part in name for part in parts))
    tuned_plainly(model, orders(range(10), 5), review_loss, adamw(model))
    again = retraining(tmp_path, whole, base=str(tuned.encoder), trained=which)
    close(again(range(10)), review_losses(model))


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        (
            {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.3, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.01),
        ),
        (
            {"optimizer": "adam", "weight_decay": 0.0},
            lambda p: torch.optim.Adam(p, lr=0.02),
        ),
    ],
    ids=["sgd", "adam"],
)
def test_optimizers(classes, tuned, tmp_path, fields, made):
    model = classifier(tuned, 5).eval()
    tuned_plainly(model, orders(range(10), 5), review_loss, made(trained(model)))
    close(retraining(tmp_path, classes, **fields)(range(10)), review_losses(model))


STEPS, WARM = 9, 3
RATES = {
    "constant": lambda step: min(1.0, step / WARM),
    "linear": lambda step: step / WARM if step < WARM else (STEPS - step) / (STEPS - WARM),
    "cosine": lambda step: (
        step / WARM
        if step < WARM
        else 0.5 * (1 + math.cos(math.pi * (step - WARM) / (STEPS - WARM)))
    ),
}


@pytest.mark.parametrize("schedule", RATES)
def test_schedules_with_warmup_and_clipping(classes, tuned, tmp_path, schedule):
    model = classifier(tuned, 5).eval()
    rate = RATES[schedule]
    tuned_plainly(model, orders(range(10), 5), review_loss, adamw(model), rate, clip=0.5)
    fields = {"schedule": schedule, "warmup": 0.3, "clip": 0.5}  # 0.3 of 9 steps: 3, as begun
    found = retraining(tmp_path, classes, **fields)(range(10))
    close(found, review_losses(model))
    unclipped = retraining(tmp_path, classes, schedule=schedule, warmup=0.3)(range(10))
    assert np.abs(found - unclipped).max() > 1e-6


def test_a_schedule_falls_over_the_steps_of_a_subset(classes, tuned, tmp_path):
    half = [0, 3, 4, 7, 9]
    model = classifier(tuned, 5).eval()
    rate = lambda step: 1 - step / 6  # noqa: E731
    tuned_plainly(model, orders(half, 5), review_loss, adamw(model), rate)
    close(retraining(tmp_path, classes, schedule="linear")(half), review_losses(model))


def test_tokens_at_once_change_nothing(causal, tmp_path):
    whole = retraining(tmp_path, causal)(range(10))
    for tokens in (1, 70):  # a sample by itself, and some together
        close(retraining(tmp_path, causal | {"max_tokens": tokens})(range(10)), whole)


# What it leaves as it was, and what it gives again


def test_bits_are_the_same_in_a_copy_and_the_callers_generators_as_before(classes, tmp_path):
    again = retraining(tmp_path, classes, dropout=True)
    torch.manual_seed(1)
    before = states()
    first = again(range(10))
    assert states() == before
    torch.manual_seed(2)
    copy = pickle.loads(pickle.dumps(again))
    assert (copy(range(10)) == first).all()
    assert (copy(np.arange(10)[::-1]) == first).all()
    for other in (again(range(10), 1), again([0, 2, 4, 6, 8]), again([1, 3, 5, 7, 9])):
        assert np.abs(other - first).min() > 1e-6


def test_one_sample(classes, tmp_path):
    assert retraining(tmp_path, classes)([3]).shape == (5,)


def test_paths_are_meant_from_the_folder_of_the_job(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = retraining(tmp_path.relative_to(tmp_path), classes)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert again(range(10)).shape == (5,)


def test_losses_of_the_jobs_own_model(causal, tuned, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tuned.causal, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, tuned.causal_adapter)
    close(retraining(tmp_path, causal).of_tuned(), sum_losses(model))
