"""Influences of what trl's trainers tuned, against their own losses, sample by sample."""

import pytest
import torch
from datasets import Dataset

from pydvl_datainf import CausalLM, Preference, Reward, SourceError, influence_from_trainer
from trl_trainers import (
    FORMS,
    MARKED,
    TOKENIZER,
    asked,
    causal,
    lora,
    pair,
    reward_model,
    trained,
    tuned_before,
    turns,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The trainer's loss counts all turns:UserWarning"),
]


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


@pytest.mark.filterwarnings("default:The trainer's loss counts all turns:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_warning_tells_where_questions_of_conversations_count(form, tmp_path, recwarn):
    settings, sample = FORMS[form]
    trainer = trained("SFT", tmp_path, sample, template=MARKED, **settings)
    recwarn.clear()
    influence_from_trainer(trainer)
    told = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert ["counts all turns of a conversation" in line for line in told] == (
        [True] if form == "messages" else []
    )


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
