"""What is refused of jobs whose models are to be tuned again."""

import json

import pytest

from pydvl_datainf import JobError, ModelError
from pydvl_datainf.huggingface import ModelFiles
from pydvl_datainf.huggingface.untuned import load_untuned
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.retraining import Retraining
from tuned import changed
from tuned_again import RECIPE, retraining, states, tuned_copy

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


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


def test_a_job_on_checkpoints_is_not_tuned_again(tmp_path, classes):
    adapter = classes.pop("adapter")
    fields = classes | {"checkpoints": [adapter], "training": RECIPE}
    (tmp_path / "job.yaml").write_text(json.dumps(fields))
    job = read_job(tmp_path / "job.yaml", {})  # a run of it is fine
    with pytest.raises(JobError, match=r"several 'checkpoints'.*Validate the job of one of them"):
        Retraining(job, tmp_path)
