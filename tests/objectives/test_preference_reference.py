"""Preference: what the reference model says, and that it leaves the model as it was."""

import copy

import peft
import pytest
import torch
from torch import nn

import tiny
from preferred import SIDES, exact_losses, log_probability, loss_of_pair, losses_of, pairs
from pydvl_datainf import ObjectiveError, reference_log_probabilities


def unanswered(batch):
    """Pairs before anything is known of a reference."""
    return {k: v for k, v in batch.items() if not k.startswith("ref")}


def assert_is_reference(found, model, batches):
    assert set(found) == {"ref_chosen_logps", "ref_rejected_logps"}
    for side in SIDES:
        parts = [
            exact_losses(model, batch, lambda m, b, side=side: log_probability(m, b, side))
            for batch in batches
        ]
        logps = found[f"ref_{side}_logps"]
        assert not logps.requires_grad
        torch.testing.assert_close(logps, torch.cat(parts), rtol=1e-9, atol=0)


def batches():
    return [unanswered(pairs(*sizes)) for sizes in ((4, 7), (1, 5), (2, 8, ("left", "left")))]


@pytest.mark.parametrize("build", [tiny.gpt2, tiny.llama])
def test_the_log_probabilities_of_a_separate_reference(build):
    torch.manual_seed(4)
    model, given = build().double().eval(), batches()
    assert_is_reference(reference_log_probabilities(model, iter(given)), model, given)


def with_own_adapters():
    """Llama with adapters by transformers' own method."""
    model = tiny.llama()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return tiny.moved(model)


ADAPTED = {
    "lora": lambda: tiny.lora(tiny.llama(), ["q_proj", "v_proj"]),
    "lora and a saved module": lambda: tiny.lora(
        tiny.llama(), ["q_proj"], modules_to_save=["lm_head"]
    ),
    "ia3": lambda: tiny.with_adapters(
        tiny.llama(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    ),
    "prompts": lambda: tiny.with_adapters(
        tiny.llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "transformers' own": with_own_adapters,
    "in another module": lambda: Wrapped(tiny.lora(tiny.llama(), ["q_proj", "v_proj"])),
}


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return self.inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
        )


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_are_disabled_meanwhile(kind):
    """Premise: the tuned model says something else, and says the same before and after."""
    torch.manual_seed(4)
    model = ADAPTED[kind]().double().eval()
    torch.manual_seed(4)
    base, given = tiny.llama().double().eval(), batches()[:2]
    before = losses_of(model, pairs_with(given[0]))
    assert_is_reference(reference_log_probabilities(model, given), base, given)
    assert torch.equal(losses_of(model, pairs_with(given[0])), before)
    assert (before - losses_of(base, pairs_with(given[0]))).abs().max() > 1e-6


def pairs_with(batch):
    zeros = torch.zeros(len(batch["chosen_labels"]))
    return {**batch, "ref_chosen_logps": zeros, "ref_rejected_logps": zeros}


def state_of(model):
    layers = [m for m in model.modules() if hasattr(type(m), "adapter_layer_names")]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    return trainable, [(m.disable_adapters, m.training) for m in layers]


@pytest.mark.parametrize("own", [False, True], ids=["peft", "transformers' own"])
@pytest.mark.parametrize("disabled", [False, True])
def test_the_model_is_left_as_it_was_also_after_an_error(adapted, own, disabled):
    """Even if half of an adapter is frozen, or adapters were disabled before."""
    model = with_own_adapters().double().eval() if own else adapted
    for layer in [m for m in model.modules() if hasattr(type(m), "adapter_layer_names")]:
        layer.enable_adapters(not disabled)  # which makes all of their parameters trainable
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    before = state_of(model)
    assert len(before[0]) == len(before[1]) == 4
    assert all(off == disabled for off, _ in before[1])
    reference_log_probabilities(model, batches())
    assert state_of(model) == before
    with pytest.raises(ObjectiveError, match="The rejected answers"):
        reference_log_probabilities(model, [{**batches()[0], "rejected_labels": torch.zeros(2)}])
    assert state_of(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_a_reference_with_dropout_is_refused(adapted):
    with pytest.raises(ObjectiveError, match=r"dropout in training mode.*model.eval\(\)"):
        reference_log_probabilities(adapted.train(), batches())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"got one batch\. Put it into a list"),
        (iter([]), "There are no pairs"),
        ([{}], r"The chosen answers of the pairs.*'labels'"),
        ([(torch.zeros(2, 3), torch.zeros(2))], r"The chosen answers of the pairs.*'labels'"),
    ],
)
def test_a_reference_needs_pairs(given, message):
    with pytest.raises(ObjectiveError, match=message):
        reference_log_probabilities(tiny.llama().eval(), given)


def test_pairs_with_their_reference(adapted):
    given = pairs()
    found = reference_log_probabilities(adapted, [unanswered(given)])
    losses = losses_of(adapted, {**unanswered(given), **found}, beta=0.5)
    base = copy.deepcopy(adapted).unload()
    expected = exact_losses(
        adapted,
        {**given, **reference_log_probabilities(base, [given])},
        lambda m, b: loss_of_pair(m, b, beta=0.5),
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
