"""Influences of what trl's trainers tuned, against their own losses, sample by sample."""

from functools import partial

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from pydvl_datainf import (
    CausalLM,
    InfluenceRun,
    ObjectiveError,
    Preference,
    Reward,
    SourceError,
    influence_from_trainer,
    run_influences,
)
from pydvl_datainf.cli import main
from pydvl_datainf.report import write_report
from tuned import tokenizer

trl = pytest.importorskip("trl", reason="needs the extra [trl]")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]

TOKENIZER = tokenizer()
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


def asked(i):
    return f"What is {i} plus {i * i}?" * (1 + i % 3)


def turns(i):
    answer = {"role": "assistant", "content": f"It is {i}."}
    return [{"role": "user", "content": asked(i)}, answer]


FORMS = {
    "text": ({}, lambda i: {"text": asked(i)}),
    "prompt and completion": ({}, lambda i: {"prompt": asked(i), "completion": f" It is {i}."}),
    "the prompt counts too": (
        {"completion_only_loss": False},
        lambda i: {"prompt": asked(i), "completion": f" It is {i}."},
    ),
    "messages": ({}, lambda i: {"messages": turns(i)}),
    "only what the assistant says": (
        {"assistant_only_loss": True},
        lambda i: {"messages": turns(i) + turns(i + 1)},
    ),
    "conversational prompt": (
        {},
        lambda i: {"prompt": turns(i)[:1], "completion": turns(i)[1:]},
    ),
    "cut": (
        {"max_length": 16},
        lambda i: {"prompt": asked(i), "completion": f" It is {i}."},
    ),
}


def pair(i):
    return {"prompt": asked(i), "chosen": f" It is {i}.", "rejected": f" No {i * i} at all."}


def causal():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def lora(task="CAUSAL_LM"):
    return LoraConfig(task_type=task, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def trained(name, folder, form, model=None, count=7, evaluation=3, template=None, **settings):
    """A trainer that has taken two steps on samples made by a function of their number."""
    keywords = {key: settings.pop(key) for key in ("peft_config", "ref_model") if key in settings}
    words = tokenizer()
    words.chat_template = template or words.chat_template
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(folder),
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **{"bf16": False, **settings},
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=model or causal(),
        args=arguments,
        train_dataset=Dataset.from_list([form(i) for i in range(count)]),
        eval_dataset=Dataset.from_list([form(i) for i in range(20, 20 + evaluation)]),
        processing_class=words,
        **keywords,
    )
    trainer.train()
    trainer.model.eval()
    return trainer


class PlainLogProbabilities:
    """What trl's kernel computes in float32 whatever comes, in the precision that comes."""

    @staticmethod
    def apply(hidden, weight, bias, targets, *settings):
        assert bias is None
        assert settings[0] == 1.0  # the temperature
        found = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        metric = torch.zeros_like(found)
        return found, metric, metric, metric, metric.bool()


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainLogProbabilities)


def losses_and_rows(trainer, data, names):
    """The trainer's own loss of each sample alone, and its gradient, one backward pass each."""
    parameters = dict(trainer.model.named_parameters())
    chosen = [parameters[name] for name in names]
    known = ("input_ids", "labels", "prompt_ids", "chosen_ids", "rejected_ids", "margin")
    known += ("ref_chosen_logps", "ref_rejected_logps")
    losses, rows = [], []
    for record in data:
        batch = trainer.data_collator([{k: v for k, v in record.items() if k in known}])
        loss = trainer.compute_loss(trainer.model, batch)
        grads = torch.autograd.grad(loss, chosen)
        losses.append(loss.detach())
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(losses), torch.stack(rows)


def check_against_the_trainer(trainer, objective, **settings):
    """Losses and gradients in float64, of training and test data."""
    trainer.model.double()
    made = influence_from_trainer(trainer, block_structure="full", **settings)
    assert type(made.influence.objective) is objective
    names = list(made.influence.blocks.shapes)
    for loader, data in ((made.train, trainer.train_dataset), (made.test, trainer.eval_dataset)):
        found = made.influence.losses(loader)
        rows = torch.cat([made.influence.loss_gradients(batch) for batch in loader])
        losses, expected = losses_and_rows(trainer, data, names)
        assert losses.dtype == torch.float64
        assert len(losses) == 1 or losses.std() > 1e-3  # premise: another order would show
        assert expected.norm(dim=1).min() > 1e-4
        torch.testing.assert_close(found, losses, rtol=1e-9, atol=1e-9)
        # Rows are kept in float32 whatever the model is in.
        torch.testing.assert_close(rows.to(expected), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_of_sft_are_the_trainers(form, tmp_path, exact):
    settings, sample = FORMS[form]
    trainer = trained("SFT", tmp_path, sample, template=MARKED, peft_config=lora(), **settings)
    check_against_the_trainer(trainer, CausalLM)


def test_samples_that_trl_drops_are_not_counted(tmp_path, exact):
    """Of a prompt that fills `max_length` no answer is left; ids say which samples there are."""
    settings, sample = FORMS["cut"]

    def named(i):
        return sample(i) | {"id": f"sample {i}"}

    trainer = trained("SFT", tmp_path, named, peft_config=lora(), **settings)
    kept = [i for i in range(7) if len(TOKENIZER(asked(i))["input_ids"]) < 16]
    assert 1 < len(kept) < 7  # premise
    made = influence_from_trainer(trainer, test=trainer.train_dataset)
    assert made.train.ids == [f"sample {i}" for i in kept]
    assert len(made.influence.losses(made.train)) == len(kept)


# Preferences


def tuned_before():
    """A model with an adapter that is not zero, so that its reference is not its base."""
    model = get_peft_model(causal(), lora())
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    return model


def conversations(i):
    said = {"role": "assistant", "content": f"Never {i * i}."}
    return {"prompt": turns(i)[:1], "chosen": turns(i)[1:], "rejected": [said]}


def another_model():
    model = causal()
    torch.manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (pair, lambda: {"peft_config": lora()}),
        (conversations, lambda: {"peft_config": lora()}),
        (pair, lambda: {"model": tuned_before()}),
        (pair, lambda: {"model": causal(), "ref_model": another_model()}),
        (pair, lambda: {"peft_config": lora(), "max_length": 20}),
    ],
    ids=["base", "conversations", "adapter before", "another model", "cut"],
)
def test_losses_and_gradients_of_dpo_are_the_trainers(form, settings, tmp_path, exact):
    trainer = trained("DPO", tmp_path, form, beta=0.3, **settings())
    trainer.model.double()
    if trainer.ref_model is not None:
        trainer.ref_model.double()
    check_against_the_trainer(trainer, Preference)


def test_the_reference_of_an_adapter_that_was_tuned_before_is_that_adapter(tmp_path, exact):
    trainer = trained("DPO", tmp_path, pair, beta=0.3, model=tuned_before())
    trainer.model.double()
    made = influence_from_trainer(trainer)
    with trainer.model.disable_adapter():
        of_base = Preference(0.3).losses(trainer.model, next(iter(made.train)))
    assert (of_base.detach() - made.influence.losses([next(iter(made.train))])).abs().min() > 1e-3


def test_a_reference_that_was_computed_before_training_serves_again(tmp_path):
    settings = {"beta": 0.3, "precompute_ref_log_probs": True}
    trainer = trained("DPO", tmp_path, pair, peft_config=lora(), **settings)
    made = influence_from_trainer(trainer)
    told = torch.cat([batch["ref_chosen_logps"] for batch in made.train])
    assert told.tolist() == list(trainer.train_dataset["ref_chosen_logps"])
    losses = [
        trainer.compute_loss(trainer.model, trainer.data_collator([record])).detach()
        for record in trainer.train_dataset
    ]
    found = made.influence.losses(made.train)
    torch.testing.assert_close(found, torch.stack(losses), rtol=1e-5, atol=1e-6)


def test_a_reference_that_is_gone_is_told(tmp_path):
    trainer = trained("DPO", tmp_path, pair, precompute_ref_log_probs=True, model=causal())
    assert len(influence_from_trainer(trainer).test.dataset) == 3
    raw = Dataset.from_list([pair(1)])
    with pytest.raises(SourceError, match="was computed before training and is gone"):
        influence_from_trainer(trainer, test=raw)


# Rewards


def reward_model():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))


@pytest.mark.parametrize("margin", [{}, {"margin": 0.7}])
def test_losses_and_gradients_of_rewards_are_the_trainers(margin, tmp_path):
    trainer = trained(
        "Reward",
        tmp_path,
        lambda i: pair(i) | {name: value * i for name, value in margin.items()},
        model=reward_model(),
        peft_config=lora("SEQ_CLS"),
    )
    check_against_the_trainer(trainer, Reward)


# What is not the plain loss


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("SFT", {"loss_type": "dft"}, "SFTTrainer: loss_type='dft'"),
        ("SFT", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ("SFT", {"use_liger_kernel": True}, "use_liger_kernel=True"),
        ("DPO", {"loss_type": ["ipo"]}, r"DPOTrainer: loss_type=\['ipo'\]"),
        ("DPO", {"loss_type": ["sigmoid", "sft"]}, r"loss_type=\['sigmoid', 'sft'\]"),
        ("DPO", {"loss_weights": [2.0]}, r"loss_weights=\[2.0\]"),
        ("DPO", {"label_smoothing": 0.1}, "label_smoothing=0.1"),
        ("DPO", {"ld_alpha": 0.5}, "ld_alpha=0.5"),
        ("DPO", {"use_weighting": True}, "use_weighting=True"),
        ("DPO", {"f_divergence_type": "forward_kl"}, "f_divergence_type='forward_kl'"),
        ("DPO", {"sync_ref_model": True}, "sync_ref_model=True"),
        ("Reward", {"center_rewards_coefficient": 0.01}, "center_rewards_coefficient=0.01"),
    ],
)
def test_losses_that_are_not_plain_are_refused_by_name(trainers, name, settings, told):
    trainer = trainers[name]
    before = {setting: getattr(trainer.args, setting) for setting in settings}
    for setting, value in settings.items():
        setattr(trainer.args, setting, value)
    try:
        with pytest.raises(ObjectiveError, match=f"not the plain one of trl's .*{told}"):
            influence_from_trainer(trainer)
    finally:
        for setting, value in before.items():
            setattr(trainer.args, setting, value)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """One of each kind, finished."""
    folder = tmp_path_factory.mktemp("trainers")
    return {
        "SFT": trained("SFT", folder, FORMS["messages"][1], peft_config=lora()),
        "DPO": trained("DPO", folder, pair, peft_config=lora()),
        "Reward": trained(
            "Reward", folder, pair, model=reward_model(), peft_config=lora("SEQ_CLS")
        ),
    }


def test_an_auxiliary_loss_is_refused(trainers, monkeypatch):
    monkeypatch.setattr(trainers["SFT"], "aux_loss_enabled", True)
    with pytest.raises(ObjectiveError, match="the router's auxiliary loss"):
        influence_from_trainer(trainers["SFT"])


@pytest.mark.parametrize(("name", "method"), [("SFT", "compute_loss"), ("DPO", "_compute_loss")])
def test_a_loss_of_ones_own_needs_an_objective(trainers, name, method, monkeypatch):
    monkeypatch.setattr(trainers[name], method, lambda *inputs, **settings: 0.0)
    with pytest.raises(ObjectiveError, match=f"a {method} of its own"):
        influence_from_trainer(trainers[name])


def test_an_objective_takes_the_place_of_a_loss_that_is_not_plain(trainers, monkeypatch):
    monkeypatch.setattr(trainers["DPO"].args, "loss_type", ["ipo"])
    made = influence_from_trainer(trainers["DPO"], Preference(0.7))
    assert made.influence.objective.beta == 0.7
    assert {"chosen_labels", "ref_rejected_logps"} <= set(next(iter(made.train)))


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_is_refused_whatever_the_strategy(strategy, tmp_path):
    settings = {"packing": True, "packing_strategy": strategy, "max_length": 32}
    trainer = trained("SFT", tmp_path, FORMS["text"][1], **settings)
    with pytest.raises(SourceError, match=f"packing_strategy='{strategy}'.*packing=False"):
        influence_from_trainer(trainer)


# What the caller keeps, and what the store shows


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_the_trainer_and_its_model_are_not_changed(trainers, name):
    trainer = trainers[name]
    model = trainer.model
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    held = dict(vars(trainer)), dict(vars(trainer.args))
    random = torch.get_rng_state()
    influence, test, train = influence_from_trainer(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    influence.fit(train).training_influences(next(iter(test)))
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert any(flags.values())
    assert (dict(vars(trainer)), dict(vars(trainer.args))) == held
    assert all(p.grad is None for p in model.parameters())
    assert model.active_adapter == "default"
    assert not model.training


def test_activity_of_adapters_is_as_before_after_a_reference_that_is_one(tmp_path):
    trainer = trained("DPO", tmp_path, pair, model=tuned_before())
    flags = {n: p.requires_grad for n, p in trainer.model.named_parameters()}
    influence_from_trainer(trainer)
    assert trainer.model.active_adapter == "default"
    assert {n: p.requires_grad for n, p in trainer.model.named_parameters()} == flags


def test_a_store_shows_texts_ids_and_losses(tmp_path):
    def sample(i):
        return {"id": f"sum {i}", "prompt": asked(i), "completion": f" It is {i}.", "level": i % 3}

    trainer = trained("SFT", tmp_path, sample, peft_config=lora())
    made = influence_from_trainer(trainer)
    run = run_influences(*made, tmp_path / "run.zarr", progress=False)
    assert run.train_ids.tolist() == [f"sum {i}" for i in range(7)]
    assert run.test_ids.tolist() == [f"sum {i}" for i in range(20, 23)]
    told = InfluenceRun(tmp_path / "run.zarr").metadata("train")
    assert told["prompt"].tolist() == [asked(i) for i in range(7)]
    assert told["completion"].tolist() == [f" It is {i}.</s>" for i in range(7)]  # as trl ends it
    assert told["level"].tolist() == [i % 3 for i in range(7)]
    losses = made.influence.losses(made.train)
    torch.testing.assert_close(torch.from_numpy(run.training_loss()), losses, rtol=1e-5, atol=1e-6)
    shown = CliRunner().invoke(main, ["top", str(tmp_path / "run.zarr"), "--test", "sum 21"])
    assert shown.exit_code == 0, shown.output
    assert "It is 21." in shown.output
    assert "sum 6" in shown.output
    write_report(run, tmp_path / "report.html")
    assert "It is 6." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_conversations_are_shown_as_texts(trainers, tmp_path):
    run = run_influences(*influence_from_trainer(trainers["SFT"]), tmp_path / "r", progress=False)
    expected = f"user: {asked(3)}\nassistant: It is 3."
    assert run.metadata("train")["messages"][3] == expected
    assert run.train_ids.tolist() == list(range(7))


def test_what_the_caller_tells_takes_the_place_of_what_the_data_tells(trainers, tmp_path):
    run = run_influences(
        *influence_from_trainer(trainers["SFT"]),
        tmp_path / "run.zarr",
        ids={"train": list("abcdefg")},
        metadata={"test": {"topic": ["x", "y", "z"]}, "run": {"by": "hand"}},
        progress=False,
    )
    assert run.train_ids.tolist() == list("abcdefg")
    assert list(run.metadata("test")) == ["topic"]
    assert list(run.metadata("train")) == ["messages"]
    assert run.metadata("run") == {"by": "hand"}


def test_groups_of_test_samples_have_no_columns_of_their_samples(trainers, tmp_path):
    made = influence_from_trainer(trainers["SFT"])
    run = run_influences(*made, tmp_path / "r", query_groups=["p", "q", "p"], progress=False)
    assert run.test_ids.tolist() == ["p", "q"]
    assert run.metadata("test") == {}
    assert list(run.metadata("train")) == ["messages"]


@pytest.mark.parametrize(("name", "told"), [("SFT", "is a stream"), ("DPO", "are a stream")])
def test_streams_are_refused(trainers, name, told, monkeypatch, tmp_path):
    stream = trainers[name].train_dataset.to_iterable_dataset()
    monkeypatch.setattr(trainers[name], "train_dataset", stream)
    made = partial(influence_from_trainer, trainers[name])
    with pytest.raises(SourceError, match=told):
        run_influences(*made(), tmp_path / "run.zarr", progress=False)


def test_tokens_alone_are_written_out(tmp_path):
    trainer = trained("SFT", tmp_path, lambda i: dict(TOKENIZER(asked(i))))
    made = influence_from_trainer(trainer)
    assert made.train.columns == {"text": [asked(i) for i in range(7)]}


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_other_test_data_is_prepared_as_the_trainers_own(trainers, name):
    form = FORMS["messages"][1] if name == "SFT" else pair
    raw = Dataset.from_list([form(i) for i in range(20, 23)])
    own, other = (influence_from_trainer(trainers[name], test=test) for test in (None, raw))
    for mine, others in zip(own.test, other.test, strict=True):
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine)


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (Dataset.from_list([]), "The data set is empty"),
        (Dataset.from_list([{"question": "a"}]), "cannot prepare data with the columns question"),
        ([{"prompt": "a", "completion": "b"}], "take a Dataset, got a list"),
        ("test", "take a Dataset, got a str"),
    ],
    ids=["empty", "columns", "list", "text"],
)
def test_test_data_that_trl_does_not_take_is_told(trainers, name, data, told):
    with pytest.raises(SourceError, match=told):
        influence_from_trainer(trainers[name], test=data)
