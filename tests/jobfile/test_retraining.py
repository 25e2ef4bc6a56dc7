"""Models of jobs, tuned again: against loops of the tests' own, in float64."""

import json
import math
import pickle
import random
import warnings
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from pydvl_datainf import InfluenceRun, JobError, ModelError
from pydvl_datainf.huggingface import ModelFiles
from pydvl_datainf.huggingface.untuned import load_untuned
from pydvl_datainf.jobfile.preparation import prepare
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.recipe import RecipeCheck, check_recipe
from pydvl_datainf.jobfile.retraining import Retraining
from pydvl_datainf.jobfile.validation import recipe_of
from tiny import answer_loss, classification_loss, token_loss, translation_loss
from tuned import changed, sums, tokenizer, write_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

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


@pytest.fixture
def classes(tuned, tmp_path):
    """A classifier with an adapter, whose head the base does not have."""
    write_lines(tmp_path / "train.jsonl", reviews(10))
    write_lines(tmp_path / "test.jsonl", reviews(5)[::-1])
    return {
        "task": "sequence-classification",
        "model": str(tuned.encoder),
        "adapter": str(tuned.classes_adapter),
        "labels": ["bad", "good"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
        "dtype": "float64",
    }


@pytest.fixture
def whole(classes, tuned):
    """The same of a classifier that was tuned whole."""
    del classes["adapter"], classes["labels"]
    return classes | {"model": str(tuned.classifier), "parameters": "all"}


@pytest.fixture
def causal(tuned, tmp_path):
    write_lines(tmp_path / "train.jsonl", sums(10))
    write_lines(tmp_path / "test.jsonl", sums(4)[::-1])
    return {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
        "dtype": "float64",
    }


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


def tuned_copy(folder, target):
    path = target / folder.name
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


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


# What it leaves as it was, and what it gives again


def states():
    return (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )


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


# What is refused


def test_a_job_without_training_is_told_what_is_needed(classes, tmp_path):
    (tmp_path / "job.yaml").write_text(json.dumps(classes))
    needed = "epochs, batch_size, optimizer, learning_rate, weight_decay, schedule"
    with pytest.raises(JobError, match=f"has no 'training', .*: {needed}"):
        Retraining(read_job(tmp_path / "job.yaml", {}), tmp_path)


@pytest.mark.parametrize("name", [n for n in RECIPE if n not in ("dropout", "seed")])
def test_a_missing_field_is_named(classes, tmp_path, name):
    training = {field: value for field, value in RECIPE.items() if field != name}
    text = json.dumps(classes | {"training": training}, indent=0)
    (tmp_path / "job.yaml").write_text(text)
    line = text.splitlines().index('"training": {') + 1
    with pytest.raises(JobError, match=rf"line {line}: 'training.{name}' is required\.$"):
        read_job(tmp_path / "job.yaml", {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "'training.epochs' must be greater than 0; got 0"),
        ({"optimizer": "lion"}, "'training.optimizer' must be 'adamw', 'adam' or 'sgd'; got 'lion"),
        ({"schedule": "step"}, "'training.schedule' must be 'constant', 'linear' or 'cosine'"),
        ({"warmup": 1.0}, "'training.warmup' must be less than 1; got 1.0"),
        ({"weight_decay": -1}, "'training.weight_decay' must be greater than or equal to 0"),
        ({"learning_rate": True}, "'training.learning_rate' must be a number, not a truth value"),
        ({"beta1": 1}, "'training.beta1' is unknown; there are base, batch_size, clip, dropout"),
        ({"momentum": 0.9}, "'training.momentum' does not belong to optimizer adamw, but to sgd"),
        ({"base": "x"}, "'training.base' is for models without an adapter; the base of one is"),
        ({"trained": "all"}, "'training.trained' is for models without an adapter"),
    ],
)
def test_wrong_fields(classes, tmp_path, fields, message):
    with pytest.raises(JobError, match=message):
        retraining(tmp_path, classes, **fields)


@pytest.mark.parametrize("name", ["base", "trained"])
def test_full_tuning_says_with_what_it_began(whole, tmp_path, name):
    given = {"base": "base", "trained": "all"}
    del given[name]
    with pytest.raises(JobError, match=f"'training.{name}' is required where there is no adapter"):
        retraining(tmp_path, whole, **given)


def test_images_are_refused(classes, tmp_path):
    del classes["labels"]
    with pytest.raises(JobError, match="'training' does not belong to task denoising, but to caus"):
        retraining(tmp_path, classes | {"task": "denoising"})
    (tmp_path / "job.yaml").write_text(json.dumps(classes | {"task": "denoising"}))
    with pytest.raises(JobError, match="Models of task denoising are not tuned again from a job"):
        Retraining(read_job(tmp_path / "job.yaml", {}), tmp_path)


def test_training_is_no_part_of_what_a_run_is(classes, tmp_path):
    assert "training" not in retraining(tmp_path, classes).job.as_told()


@pytest.mark.filterwarnings("ignore:.*init_lora_weights.*:UserWarning:peft")
@pytest.mark.filterwarnings("ignore:.*lora_ga.*:UserWarning")
@pytest.mark.parametrize("made", ["corda", "eva", "loftq", "lora_ga"])
def test_adapters_whose_beginning_took_data_are_refused(classes, tuned, tmp_path, made):
    config = tuned_copy(tuned.classes_adapter, tmp_path) / "adapter_config.json"
    changed(config, init_lora_weights=made, loftq_config={"loftq_bits": 4})
    again = retraining(tmp_path, classes | {"adapter": "classes_adapter"})
    with pytest.raises(ModelError, match=f"was made with init_lora_weights={made}, from more than"):
        again(range(10))


def test_a_model_that_holds_an_adapter_is_not_taken_for_one_tuned_whole(tuned, tmp_path):
    model = tuned_copy(tuned.classifier, tmp_path)
    (model / "adapter_config.json").write_text("{}")
    files = ModelFiles("sequence-classification", str(model))
    with pytest.raises(ModelError, match=r"/classifier holds an adapter. To tune it again, name"):
        load_untuned(files, str(tuned.encoder), "all")


def test_a_base_that_is_not_there(whole, tmp_path):
    again = retraining(tmp_path, whole, base="./bare", trained="all")
    with pytest.raises(ModelError, match=r"There is no folder .*/bare\."):
        again(range(10))


def test_divergence_is_told(classes, tmp_path):
    again = retraining(tmp_path, classes, learning_rate=1e30)
    before = states()
    with pytest.raises(ModelError, match=r"diverged .* a loss is \w+ after \d steps.*1e\+30"):
        again(range(10))
    assert states() == before


# Whether the recipe is the right one


def save(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(path)


@pytest.fixture
def own(classes, tuned, tmp_path):
    """A model that was tuned by the recipe, with a seed of its own."""
    model = classifier(tuned, 11).eval()
    save(tuned_plainly(model, orders(range(10), 11), review_loss, adamw(model)), tmp_path / "own")
    return classes | {"adapter": "own"}


def retrained(again):
    return lambda seeds: np.stack([again(range(10), seed) for seed in range(seeds)])


def test_the_right_recipe(own, tmp_path):
    again = retraining(tmp_path, own)
    found = check_recipe(again.of_tuned(), retrained(again))
    assert 0 < found.distance < 3 * found.between_seeds
    assert 0 < found.distance_of_means < 3 * found.means_between_seeds


def test_a_wrong_recipe(own, tmp_path):
    again = retraining(tmp_path, own, learning_rate=1e-4, epochs=1)
    given, losses = again.of_tuned(), retrained(again)(6)
    with pytest.raises(JobError, match="'training' is not the recipe that made the model") as told:
        check_recipe(given, lambda seeds: losses[:seeds])
    pairs = [np.abs(losses[i] - losses[j]).mean() for i in range(6) for j in range(i)]
    for figure in (np.abs(losses - given).mean(), np.mean(pairs)):
        assert f"by {figure:.3g} " in str(told.value)
    for figure in (given.mean(), losses.mean()):
        assert f"{figure:.4g}" in str(told.value)


def test_distances_are_means_of_absolute_differences():
    losses = np.array([[1.5, 2.0], [1.0, 1.0], [0.0, 1.0]])
    found = RecipeCheck(np.array([1.0, 2.0]), losses)
    assert found.distance == pytest.approx((0.5 + 0 + 0 + 1 + 1 + 1) / 6)
    assert found.between_seeds == pytest.approx((1.5 + 2.5 + 1) / 2 / 3)
    assert found.distance_of_means == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found.means_between_seeds == pytest.approx((0.75 + 1.25 + 0.5) / 3)
    assert found.fits
    assert not replace(found, given=found.given + 3).fits


def test_a_mean_that_is_off_is_seen_where_single_losses_vary():
    noise = np.array([1.0, -1.0] * 4)
    losses = np.stack([noise, -noise + 0.01])
    assert RecipeCheck(noise + 0.02, losses).fits
    shifted = RecipeCheck(noise + 0.5, losses)
    assert shifted.distance < shifted.between_seeds
    assert not shifted.fits


def test_more_seeds_are_asked_for_only_where_fewer_do_not_do():
    asked = []

    def losses(seeds):
        asked.append(seeds)
        return np.array([[1.0], [1.01], [2.0], [0.0], [1.0], [1.0]])[:seeds]

    assert len(check_recipe(np.array([1.005]), losses).retrained) == 2
    assert asked == [2]
    assert len(check_recipe(np.array([1.5]), losses).retrained) == 4
    assert asked == [2, 2, 4]
    with pytest.raises(JobError, match=r"with 6 seeds.* is 5 given, and 1.002 retrained"):
        check_recipe(np.array([5.0]), losses)
    assert asked == [2, 2, 4, 2, 4, 6]


def test_where_seeds_change_nothing_rounding_is_allowed():
    given = np.array([1.0, 2.0])
    assert RecipeCheck(given, np.stack([given, given]) * (1 + 5e-4)).fits
    assert not RecipeCheck(given, np.stack([given, given]) * (1 + 2e-3)).fits


# Other questions, and what decides the losses


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


def test_a_job_on_checkpoints_is_not_tuned_again(tmp_path, classes):
    adapter = classes.pop("adapter")
    fields = classes | {"checkpoints": [adapter], "training": RECIPE}
    (tmp_path / "job.yaml").write_text(json.dumps(fields))
    job = read_job(tmp_path / "job.yaml", {})  # a run of it is fine
    with pytest.raises(JobError, match=r"several 'checkpoints'.*Validate the job of one of them"):
        Retraining(job, tmp_path)


def test_another_base_in_the_same_place_is_another_recipe(tmp_path, classes):
    base = copytree(classes["model"], tmp_path / "base")
    fields = classes | {"model": str(base)}
    before = recipe_of(retraining(tmp_path, fields))
    assert recipe_of(retraining(tmp_path, fields)) == before
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.get_input_embeddings().weight.data[0] += 1
    model.base_model.save_pretrained(base)
    after = recipe_of(retraining(tmp_path, fields))
    told = [json.loads(text)["base"] for text in (before, after)]
    assert [name for name in told[0] if told[0][name] != told[1][name]] == ["model.safetensors"]
