"""Preference: losses of pairs of answers, their rows, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

import dense
import tiny
from preferred import SIDES, exact_losses, log_probability, loss_of_pair, losses_of, pairs
from pydvl_datainf import ObjectiveError, Preference
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

MODELS = {
    "gpt2": tiny.gpt2,
    "gpt2, lora": lambda: tiny.lora(tiny.gpt2(), ["c_attn", "c_fc"], fan_in_fan_out=True),
    "llama": tiny.llama,
    "llama, lora": lambda: tiny.lora(tiny.llama(), ["q_proj", "v_proj", "down_proj"]),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(4)
    return MODELS[request.param]().double().eval()


def rows_of(model, batch, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return blocks.flatten(CaptureEngine(model, Preference(), blocks, **kwargs).rows(batch))


# Losses


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_of_one_pair_is_the_formula_in_one_forward_pass(model, beta):
    """Both answers in one batch, as trainers compute it; premise: they are of one length."""
    prompt, answers = torch.randint(1, 40, (1, 4)), torch.randint(1, 40, (2, 3))
    ids = torch.cat([prompt.expand(2, 4), answers], 1)
    labels = ids.clone()
    labels[:, :4] = -100
    log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    log_p = log_p.gather(2, ids[:, 1:, None])[:, 3:, 0].sum(1).detach()
    reference = torch.tensor([-9.0, -7.5], dtype=torch.float64)
    ratios = log_p - reference
    expected = -F.logsigmoid(beta * (ratios[0] - ratios[1])).reshape(1)
    batch = {}
    for i, side in enumerate(SIDES):
        batch |= {f"{side}_input_ids": ids[i : i + 1], f"{side}_labels": labels[i : i + 1]}
        batch[f"ref_{side}_logps"] = reference[i : i + 1]
    torch.testing.assert_close(losses_of(model, batch, beta=beta), expected, rtol=1e-9, atol=0)
    swapped = {**batch, "ref_chosen_logps": reference[1:], "ref_rejected_logps": reference[:1]}
    assert (losses_of(model, swapped, beta=beta) - expected).abs() > 1e-3


PADDING = [("right", "right"), ("left", "left"), ("left", "right")]


@pytest.mark.parametrize("padding", PADDING)
def test_neither_padding_nor_companions_change_losses(model, padding):
    batch = pairs(4, 7, padding)
    exact = exact_losses(model, batch)
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)
    part = {k: v[[3, 1]] for k, v in batch.items()}
    torch.testing.assert_close(losses_of(model, part), exact[[3, 1]], rtol=1e-9, atol=0)


def test_the_reference_itself_loses_a_bit_on_each_pair(model):
    """log 2, where the model is its own reference."""
    batch = pairs(3)
    for side in SIDES:
        batch[f"ref_{side}_logps"] = exact_losses(
            model, batch, lambda m, b, side=side: log_probability(m, b, side)
        )
    expected = torch.full((3,), 2.0, dtype=torch.float64).log()
    torch.testing.assert_close(losses_of(model, batch), expected, rtol=1e-9, atol=0)


def test_certain_pairs_have_finite_losses():
    """Also where exp overflows: the loss of a hopeless pair is its distance."""
    torch.manual_seed(4)
    model, batch = tiny.llama().eval(), pairs(2)
    batch["ref_chosen_logps"] = torch.tensor([1e4, -1e4])
    losses = losses_of(model, batch, beta=1.0)
    assert losses.isfinite().all()
    assert losses[0] > 9e3
    assert 0 <= losses[1] < 1e-3


# Rows


@pytest.mark.parametrize("padding", PADDING)
def test_rows_are_those_of_one_backward_pass_per_pair(model, padding):
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, Preference(), blocks, strict=True)
    for length, positions in ((4, 7), (1, 5), (3, 9)):
        batch = pairs(length, positions, padding)
        exact = dense.gradients(model, loss_of_pair, batch, tiny.names_of(model))
        tiny.assert_rows_close(blocks.flatten(engine.rows(batch)), exact)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 5e-2)])
def test_rows_of_narrower_models(model, dtype, bound):
    batch, narrow = pairs(3), model.to(dtype)
    rows = rows_of(narrow, batch)
    wide = dense.in_float64(narrow)
    exact = dense.gradients(wide, loss_of_pair, batch, tiny.names_of(wide))
    assert rows.dtype == torch.float32
    assert ((rows - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: {**batch, "ref_chosen_logps": batch["ref_chosen_logps"] + 1e-6},
        lambda batch: {**batch, "chosen_labels": batch["chosen_input_ids"]},
    ],
    ids=["another reference", "prompts that count"],
)
def test_rows_of_another_pair_are_noticed(adapted, wrong):
    batch = pairs()
    exact = dense.gradients(adapted, loss_of_pair, batch, tiny.names_of(adapted))
    tiny.assert_rows_close(rows_of(adapted, batch), exact)
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(rows_of(adapted, wrong(batch)), exact)


# What is refused


@pytest.mark.parametrize("beta", [0, -0.1, float("nan"), float("inf")])
def test_beta_is_positive(beta):
    with pytest.raises(ObjectiveError, match="beta must be positive and finite, got"):
        Preference(beta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_chosen_logps": None}, r"'ref_chosen_logps', got.*reference_log_probabilities"),
        ({"ref_rejected_logps": None}, r"'ref_rejected_logps', got.*reference_log_probabilities"),
        ({"ref_chosen_logps": torch.zeros(4, 1)}, r"shape \(4,\), got \(4, 1\)"),
        ({"ref_rejected_logps": torch.zeros(1)}, r"shape \(4,\), got \(1,\)"),
        ({"chosen_labels": None}, r"The chosen answers of the pairs.*'labels'"),
        ({"rejected_input_ids": None}, "The rejected answers of the pairs.*'input_ids'"),
        ({"rejected_labels": torch.zeros(4, 2).long()}, r"The rejected answers.*got .*\(4, 2\)"),
        (
            {"chosen_labels": torch.full((4, 7), -100)},
            "The chosen answers .* sample 0 of a batch has no labelled token",
        ),
    ],
)
def test_batches_that_are_refused(change, message):
    batch = {k: v for k, v in {**pairs(), **change}.items() if v is not None}
    with pytest.raises(ObjectiveError, match=message):
        losses_of(tiny.llama(), batch)


def test_pairs_of_tensors_are_refused():
    with pytest.raises(ObjectiveError, match=r"got an \(x, y\) pair"):
        losses_of(tiny.llama(), (torch.zeros(2, 3).long(), torch.zeros(2, 3).long()))
