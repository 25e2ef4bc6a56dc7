"""The state of Adam in a Trainer's checkpoint, with its numbers matched to names again."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from pydvl_datainf import AdamPreconditioner, ModelError, OptimizerError, SequenceClassification
from pydvl_datainf.huggingface import InfluenceBuilder, ModelFiles, read_adam
from stepped import scales
from tuned import tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

STEPS = 2


def base(tuned):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tuned.encoder, num_labels=2)


def adapted(tuned):
    """With a head that is trained too, and biases: two of them have no weight decay."""
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], "bias": "lora_only"}
    return get_peft_model(base(tuned), LoraConfig(task_type="SEQ_CLS", **lora))


def trained(model, folder, **settings):
    words = tokenizer()
    texts = [f"What is {i}?" * (1 + i % 3) for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=STEPS,
        **settings,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{**words(text), "labels": i % 2} for i, text in enumerate(texts)]
        ),
        data_collator=DataCollatorWithPadding(words),
    )
    trainer.train()
    trainer.model.eval()
    return trainer


@pytest.fixture(scope="module")
def trainer(tuned, tmp_path_factory):
    """That has taken two steps of a LoRA model, and saved a checkpoint."""
    return trained(adapted(tuned), tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def checkpoint(trainer, tmp_path_factory):
    return f"{trainer.args.output_dir}/checkpoint-{STEPS}"


@pytest.fixture
def copied(checkpoint, tmp_path):
    """The checkpoint, to be changed."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def rewrite(folder, change):
    """Saves the state of the optimizer anew, changed in place."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "optimizer.pt")
    return folder


def test_a_round_trip_with_a_trainer(tuned, trainer, checkpoint):
    """v by name is the optimizer's own, for a model that was loaded again."""
    files = ModelFiles("sequence-classification", str(tuned.encoder), checkpoint, ("bad", "good"))
    model = files.load()
    found = read_adam(checkpoint, model)
    own = trainer.optimizer.state
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    groups = trainer.optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [9, 5]  # both kinds are there
    assert found.step == STEPS
    assert found.scales.keys() == named.keys()
    for name, parameter in named.items():
        expected = scales(own[parameter]["exp_avg_sq"].double(), STEPS)
        close = {"rtol": 1e-5, "atol": 0}
        torch.testing.assert_close(found.scales[name].flatten().double(), expected, **close)
    direct = AdamPreconditioner.from_optimizer(trainer.optimizer, trainer.model)
    assert direct.step == STEPS
    assert all(torch.equal(direct.scales[name], s) for name, s in found.scales.items())
    different = {tuple(s.flatten().tolist()) for s in found.scales.values()}
    assert len(different) == len(named)  # so that another order would show


def test_a_model_that_was_tuned_whole(tuned, tmp_path):
    """Whose norms and biases come last, though they are among the others in the model."""
    made = trained(base(tuned), tmp_path)
    path = tmp_path / f"checkpoint-{STEPS}"
    model = AutoModelForSequenceClassification.from_pretrained(path)
    found = read_adam(path, model)
    direct = AdamPreconditioner.from_optimizer(made.optimizer, made.model)
    assert found.scales.keys() == direct.scales.keys()
    assert all(torch.equal(direct.scales[name], s) for name, s in found.scales.items())


def test_a_builder_reads_it_before_it_chooses_parameters(tuned, checkpoint):
    files = ModelFiles("sequence-classification", str(tuned.encoder), checkpoint, ("bad", "good"))
    build = InfluenceBuilder(files, SequenceClassification(), checkpoint=checkpoint)
    influence = build()
    assert not any("classifier" in name for name in influence.blocks.shapes)
    assert any("classifier" in name for name in influence.preconditioner.scales)


# Refusals


def test_no_file(tmp_path, trainer):
    with pytest.raises(OptimizerError, match=r"no file .*optimizer\.pt.*save_only_model"):
        read_adam(tmp_path, trainer.model)


def test_other_parameters_require_gradients(tuned, checkpoint):
    with pytest.raises(OptimizerError, match=r"groups of 9 \+ 5 parameters.*Let the same param"):
        read_adam(checkpoint, base(tuned))


def test_other_shapes(tuned, checkpoint):
    lora = {"r": 3, "lora_alpha": 4, "target_modules": ["query", "value"], "bias": "lora_only"}
    wider = get_peft_model(base(tuned), LoraConfig(task_type="SEQ_CLS", **lora))
    with pytest.raises(OptimizerError, match=r"shape \(2, 16\) where '.*' would be.*\(3, 16\)"):
        read_adam(checkpoint, wider)


def test_an_order_that_the_shapes_contradict(trainer, copied):
    def swap(state):
        first = state["param_groups"][0]["params"]
        first[0], first[1] = first[1], first[0]

    with pytest.raises(OptimizerError, match=r"where '.*lora_A.* would be"):
        read_adam(rewrite(copied, swap), trainer.model)


def eight_bits(state):
    state["state"] = {
        i: {"step": 2, "state1": s["exp_avg"].byte(), "state2": s["exp_avg_sq"].byte()}
        for i, s in state["state"].items()
    }


def sgd(state):
    state["state"] = {i: {"momentum_buffer": s["exp_avg"]} for i, s in state["state"].items()}


def adafactor(state):
    for group in state["param_groups"]:
        del group["betas"]
        group["scale_parameter"] = True
    state["state"] = {i: {"step": 2, "RMS": 1.0} for i in state["state"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (eight_bits, "not torch's Adam: of '.*' it keeps state1, state2, step.*optim=adamw_torch"),
        (sgd, "it keeps momentum_buffer"),
        (adafactor, "its settings are .*scale_parameter"),
        (lambda state: state["state"].clear(), "has taken no step"),
        (lambda state: state.pop("param_groups"), "not what an optimizer of torch saves"),
        (lambda state: state["param_groups"].pop(), "groups of 9 parameters, .* into 9 [+] 5"),
    ],
)
def test_states_that_do_not_fit(trainer, copied, change, message):
    with pytest.raises(OptimizerError, match=message):
        read_adam(rewrite(copied, change), trainer.model)


def test_a_parameter_that_was_never_stepped_has_no_scale(trainer, copied):
    found = read_adam(rewrite(copied, lambda state: state["state"].pop(0)), trainer.model)
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    first = next(name for name in names if "bias" not in name)
    assert set(names) - found.scales.keys() == {first}


def test_damage_and_code_are_never_run(trainer, copied):
    path = copied / "optimizer.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="Could not load the state of the optimizer"):
        read_adam(copied, trainer.model)
    torch.save({"state": print}, path)
    with pytest.raises(ModelError, match="more than weights, which is never run"):
        read_adam(copied, trainer.model)
