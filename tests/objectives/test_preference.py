"""Preference: losses of pairs of answers, their rows, and what the reference model says."""

import copy

import peft
import pytest
import torch
from distributed import Client, LocalCluster
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import (
    DataInfInfluence,
    ObjectiveError,
    Preference,
    reference_log_probabilities,
    run_influences,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

SIDES = ("chosen", "rejected")
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


@pytest.fixture
def tuned():
    """Llama with adapters that were moved from their start."""
    torch.manual_seed(4)
    return tiny.lora(tiny.llama(), ["q_proj", "v_proj"], lora_dropout=0.5).double().eval()


def pairs(length=4, positions=7, padding=("right", "right")):
    """Pairs whose rejected answers are two tokens longer, and what some reference says of them."""
    batch = {}
    for side, where, longer in zip(SIDES, padding, (0, 2), strict=True):
        answers = tiny.answers(length, positions + longer, where)
        batch |= {f"{side}_{key}": tensor for key, tensor in answers.items()}
        batch[f"ref_{side}_logps"] = -8 * torch.rand(length, dtype=torch.float64)
    return batch


def log_probability(model, batch, side):
    """Of one answer, from its tokens alone: padding is cut off."""
    keys = ("input_ids", "attention_mask", "labels")
    answer = {key: batch[f"{side}_{key}"] for key in keys}
    return -(answer["labels"] != -100).sum() * tiny.answer_loss_of_text(model, answer)


def loss_of_pair(model, batch, beta=0.1):
    chosen, rejected = (
        log_probability(model, batch, side) - batch[f"ref_{side}_logps"][0] for side in SIDES
    )
    return torch.log1p(torch.exp(-beta * (chosen - rejected)))


def losses_of(model, batch, **kwargs):
    with torch.no_grad():
        return Preference(**kwargs).losses(model, batch)


def exact_losses(model, batch, loss=loss_of_pair):
    with torch.no_grad():
        return torch.stack(dense.sample_losses(model, loss, batch))


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
def test_rows_of_another_pair_are_noticed(tuned, wrong):
    batch = pairs()
    exact = dense.gradients(tuned, loss_of_pair, batch, tiny.names_of(tuned))
    tiny.assert_rows_close(rows_of(tuned, batch), exact)
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(rows_of(tuned, wrong(batch)), exact)


# The reference


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
def test_the_model_is_left_as_it_was_also_after_an_error(tuned, own, disabled):
    """Even if half of an adapter is frozen, or adapters were disabled before."""
    model = with_own_adapters().double().eval() if own else tuned
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


def test_a_reference_with_dropout_is_refused(tuned):
    with pytest.raises(ObjectiveError, match=r"dropout in training mode.*model.eval\(\)"):
        reference_log_probabilities(tuned.train(), batches())


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


def test_pairs_with_their_reference(tuned):
    given = pairs()
    found = reference_log_probabilities(tuned, [unanswered(given)])
    losses = losses_of(tuned, {**unanswered(given), **found}, beta=0.5)
    base = copy.deepcopy(tuned).unload()
    expected = exact_losses(
        tuned,
        {**given, **reference_log_probabilities(base, [given])},
        lambda m, b: loss_of_pair(m, b, beta=0.5),
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)


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


# Runs


@pytest.fixture(scope="module")
def task():
    """An influence model of a tuned Llama, test and training pairs, and scores by the oracle."""
    torch.manual_seed(4)
    model = tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval()
    test, train = ([pairs(length) for length in lengths] for lengths in ((3, 2), (4, 4, 1)))
    whole = ({k: torch.cat([b[k] for b in side]) for k in side[0]} for side in (test, train))
    exact = tiny.influences(model, loss_of_pair, *whole)
    return DataInfInfluence(model, Preference()), test, train, exact


ROWS = [("memory", 1e-9), ("recompute", 1e-9), ("zarr", 1e-3)]


@pytest.mark.parametrize(("rows", "bound"), ROWS)
def test_scores_are_those_of_the_formula(tmp_path, task, rows, bound):
    *given, exact = task
    done = run_influences(*given, tmp_path / "run.zarr", rows=rows, progress=False)
    assert done.plan.rows == rows
    tiny.assert_scores_close(done.scores[...], exact, bound)


def test_another_beta_gives_other_scores(tmp_path, task):
    """The control of the tests beside it."""
    influence, test, train, exact = task
    other = DataInfInfluence(influence.model, Preference(0.11))
    done = run_influences(other, test, train, tmp_path / "run.zarr", progress=False)
    with pytest.raises(AssertionError):
        tiny.assert_scores_close(done.scores[...], exact, 1e-2)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "bound"), ROWS[1:])
def test_dask_workers_agree(tmp_path, task, client, rows, bound):
    *given, exact = task
    store = tmp_path / "run.zarr"
    done = run_influences(*given, store, client=client, rows=rows, progress=False)
    tiny.assert_scores_close(done.scores[...], exact, bound)
