"""Losses of language models and token classifiers: which tokens count, and from where."""

from types import SimpleNamespace

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import CausalLM, ObjectiveError, TokenClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama, "qwen2": tiny.qwen2}


@pytest.fixture(params=MODELS)
def build(request):
    torch.manual_seed(3)
    return MODELS[request.param]


def losses_of(model, batch, objective=None):
    with torch.no_grad():
        return (objective or CausalLM()).losses(model, batch)


def exact_losses(model, batch, loss=tiny.answer_loss_of_text):
    with torch.no_grad():
        return torch.stack(dense.sample_losses(model, loss, batch))


def rows_of(model, batch, objective=None):
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, objective or CausalLM(), blocks, strict=True)
    return blocks.flatten(engine.rows(batch))


def shifted(batch, left, right):
    """A batch with more padding on both sides."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {k: F.pad(v, (left, right), value=fill[k]) for k, v in batch.items()}


# Causal language models: the loss


def test_the_loss_of_one_sample_is_that_of_transformers(build):
    model = build().eval()
    batch = tiny.answers(1, 7)
    torch.testing.assert_close(losses_of(model, batch), model(**batch).loss.detach().reshape(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_tokens_of_the_answer_count(build, side):
    model = build().double().eval()
    batch = tiny.answers(side=side)
    exact = exact_losses(model, batch)
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)
    everything = {**batch, "labels": batch["input_ids"]}
    assert ((losses_of(model, everything) - exact).abs() > 1e-6).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_labelled_does_not_count(build, side):
    """Nor does the first token of a text, which no token precedes."""
    model = build().double().eval()
    batch = tiny.answers(side=side)
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 5)
    exact = exact_losses(model, batch)
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)


def test_a_sum_is_the_mean_times_the_number_of_tokens(build):
    model = build().double().eval()
    batch = tiny.answers()
    counts = (batch["labels"] != -100).sum(1)
    assert len(counts.unique()) > 1
    sums = losses_of(model, batch, CausalLM(reduction="sum"))
    torch.testing.assert_close(sums, counts * losses_of(model, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prompt", [1, 2])
def test_short_prompts(build, prompt):
    model = build().double().eval()
    ids = torch.randint(1, 40, (3, prompt + 1))
    labels = F.pad(ids[:, -1:], (prompt, 0), value=-100)
    log_p = model(ids).logits[:, -2].log_softmax(-1)
    expected = -log_p.gather(1, ids[:, -1:])[:, 0].detach()
    batch = {"input_ids": ids, "labels": labels}
    torch.testing.assert_close(losses_of(model, batch), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
def test_masks_and_labels_of_other_types(build, dtype):
    model = build().double().eval()
    batch = tiny.answers(side="left")
    other = {**batch, "attention_mask": batch["attention_mask"].to(dtype)}
    other["labels"] = batch["labels"].to(torch.int32)
    torch.testing.assert_close(losses_of(model, other), losses_of(model, batch), rtol=0, atol=0)


def test_embeddings_in_place_of_tokens(build):
    model = build().double().eval()
    batch = tiny.answers()
    embedded = {**batch, "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach()}
    del embedded["input_ids"]
    torch.testing.assert_close(losses_of(model, embedded), losses_of(model, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_raised(build, dtype):
    model = build().to(dtype).eval()
    batch = tiny.answers(1, 7)
    logits = model(batch["input_ids"]).logits[:, :-1].detach()
    assert logits.dtype == dtype
    expected = F.cross_entropy(logits[0].float(), batch["labels"][0, 1:]).reshape(1)
    assert losses_of(model, batch).dtype == torch.float32
    torch.testing.assert_close(losses_of(model, batch), expected, rtol=5e-3, atol=0)


def test_the_output_layer_sees_only_what_comes_before_answers():
    model = tiny.llama().eval()
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    batch = tiny.answers(2, 9)
    batch["labels"][:, :6] = -100
    losses_of(model, batch)
    assert seen == [(2, 3, 16)]


# Padding, positions and companions


@pytest.mark.parametrize(
    ("attention", "dtype", "bound"),
    [("sdpa", torch.float64, 1e-9), ("eager", torch.float32, 5e-6)],
)
def test_neither_padding_nor_companions_change_losses_and_rows(build, attention, dtype, bound):
    """Eager attention is tested in float32, since it overflows on padding in float64."""
    model = build(attn_implementation=attention).to(dtype).eval()
    batch = tiny.answers(4, 7)
    wide = dense.in_float64(model)
    exact = exact_losses(wide, batch)
    exact_rows = dense.gradients(wide, tiny.answer_loss_of_text, batch, tiny.names_of(wide))
    left = tiny.to_the_left(batch)
    pair = {k: v[1:3] for k, v in left.items()}
    for padded, part in ((batch, slice(4)), (left, slice(4)), (pair, slice(1, 3))):
        for added in ((0, 0), (3, 0), (0, 2), (2, 1)):
            losses = losses_of(model, shifted(padded, *added))
            torch.testing.assert_close(losses.double(), exact[part], rtol=bound, atol=0)
        rows = rows_of(model, shifted(padded, 1, 1))
        tiny.assert_rows_close(rows, exact_rows[part], bound)


def test_padding_on_the_left_would_change_what_counts_positions_from_the_edge():
    """The control of the test above: without positions of its own, GPT-2 is another."""
    torch.manual_seed(3)
    model = tiny.gpt2().double().eval()
    batch = shifted(tiny.answers(4, 7), 3, 0)
    counted = {**batch, "position_ids": torch.arange(10).expand(4, 10)}
    assert ((losses_of(model, counted) - losses_of(model, batch)).abs() > 1e-6).all()


def test_positions_that_are_given_are_kept(build):
    model = build().double().eval()
    batch = shifted(tiny.answers(3, 7), 2, 0)
    batch["position_ids"] = torch.arange(9).expand(3, 9).flip(0) * torch.tensor([[1], [0], [1]])
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.detach()
    expected = [
        F.cross_entropy(a[:-1], b[1:]) for a, b in zip(logits, batch["labels"], strict=True)
    ]
    torch.testing.assert_close(losses_of(model, batch), torch.stack(expected), rtol=1e-9, atol=0)


def test_a_masked_token_within_a_text_keeps_its_position(build):
    """So that a companion with padding on the left does not move the others."""
    model = build().double().eval()
    batch = tiny.answers(2, 7)
    batch["attention_mask"][0, 2] = 0
    alone = losses_of(model, {k: v[:1] for k, v in batch.items()})
    companion = shifted(tiny.answers(1, 6), 1, 0)
    together = {k: torch.cat([batch[k][:1], companion[k]]) for k in companion}
    torch.testing.assert_close(losses_of(model, together)[:1], alone, rtol=1e-9, atol=0)


# Models that are not transformers'


class Plain(nn.Module):
    """Takes tokens and a mask alone, and returns an object with logits."""

    def __init__(self, cut=0):
        super().__init__()
        self.embedding, self.out = nn.Embedding(40, 4), nn.Linear(4, 40)
        self.cut = cut

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids).cumsum(1)
        return SimpleNamespace(logits=self.out(torch.tanh(h))[:, self.cut :])


def test_a_plain_model_without_further_arguments():
    torch.manual_seed(0)
    model, batch = Plain().double(), tiny.answers()
    exact = dense.gradients(model, tiny.answer_loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(rows_of(model, batch), exact)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_tuned_prompts_shift_the_logits(config):
    torch.manual_seed(0)
    model = get_peft_model(tiny.llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    batch = tiny.answers(3, 7)
    own = [model(**{k: v[i : i + 1] for k, v in batch.items()}).loss for i in range(3)]
    torch.testing.assert_close(losses_of(model, batch), torch.stack(own).detach())
    blocks = Blocks.from_model(model, "module")
    rows = CaptureEngine(model, CausalLM(), blocks).rows(batch)
    exact = dense.gradients(model, lambda m, b: m(**b).loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(blocks.flatten(rows), exact.double(), 5e-6)
    left = losses_of(model, tiny.to_the_left(batch))
    torch.testing.assert_close(left, torch.stack(own).detach())
    tiny.assert_rows_close(
        blocks.flatten(CaptureEngine(model, CausalLM(), blocks).rows(tiny.to_the_left(batch))),
        exact.double(),
        5e-6,
    )


# What is refused

BATCH = {
    "input_ids": torch.ones(3, 5, dtype=torch.long),
    "attention_mask": torch.ones(3, 5, dtype=torch.long),
    "labels": torch.ones(3, 5, dtype=torch.long),
}
UNLABELLED = torch.tensor([[1, 1, 1, 1, 1], [1, -100, -100, -100, -100], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.ones(3, 4, dtype=torch.long)}, r"shape \(3, 5\).*got .*\(3, 4\)"),
        ({"labels": torch.ones(3, dtype=torch.long)}, r"shape \(3, 5\).*got .*\(3,\)"),
        ({"labels": torch.ones(3, 5)}, "must be integers"),
        ({"labels": UNLABELLED}, "sample 1 of a batch has no labelled token"),
        ({"attention_mask": torch.tensor([[1], [1], [0]]).repeat(1, 5)}, "sample 2 of a batch"),
        ({"attention_mask": torch.ones(3, 1, 5, 5)}, r"must be of shape \(3, 5\)"),
    ],
)
@pytest.mark.parametrize("model", [tiny.llama, Plain])
def test_batches_that_are_refused(model, change, message):
    with pytest.raises(ObjectiveError, match=message):
        losses_of(model(), {**BATCH, **change})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": BATCH["input_ids"]}, "the key 'labels'"),
        ({"x": BATCH["input_ids"], "labels": BATCH["labels"]}, "'input_ids' or 'inputs_embeds'"),
        ((BATCH["input_ids"], BATCH["labels"]), r"an \(x, y\) pair"),
        ({k: v[:, :1] for k, v in BATCH.items()}, "sample 0 of a batch has no labelled token"),
    ],
)
def test_batches_without_texts_or_answers(batch, message):
    with pytest.raises(ObjectiveError, match=message):
        losses_of(tiny.llama(), batch)


def test_padding_on_the_left_of_a_model_that_takes_no_positions():
    torch.manual_seed(0)
    model, batch = Plain().double(), tiny.answers()
    exact = exact_losses(model, batch)
    for padded in (tiny.to_the_left(batch), shifted(batch, 2, 0)):
        torch.testing.assert_close(losses_of(model, padded), exact, rtol=1e-9, atol=0)


def test_logits_of_another_shape():
    with pytest.raises(ObjectiveError, match=r"logits must be of shape"):
        losses_of(Plain(cut=2), BATCH)


@pytest.mark.parametrize("objective", [CausalLM, TokenClassification])
def test_there_is_no_other_reduction(objective):
    with pytest.raises(ObjectiveError, match=r'"mean" or "sum", got \'none\''):
        objective(reduction="none")


# Token classification


def test_losses_of_labelled_tokens():
    torch.manual_seed(0)
    model = tiny.bert_tokens().double().eval()
    batch = tiny.labelled_tokens()
    batch["labels"][2, 3] = -100
    exact = exact_losses(model, batch, tiny.token_loss)
    losses = losses_of(model, batch, TokenClassification())
    torch.testing.assert_close(losses, exact, rtol=1e-9, atol=0)
    counts = ((batch["labels"] != -100) & batch["attention_mask"].bool()).sum(1)
    sums = losses_of(model, batch, TokenClassification(reduction="sum"))
    torch.testing.assert_close(sums, exact * counts, rtol=1e-9, atol=0)
    unmasked = {k: v for k, v in batch.items() if k != "attention_mask"}
    assert (losses_of(model, unmasked, TokenClassification()) - exact).abs().max() > 1e-6


def test_the_loss_of_one_text_is_that_of_transformers():
    model = tiny.bert_tokens().eval()
    batch = tiny.labelled_tokens(1, 7)
    losses = losses_of(model, batch, TokenClassification())
    torch.testing.assert_close(losses, model(**batch).loss.detach().reshape(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.ones(3, dtype=torch.long)}, r"shape \(3, 5\)"),
        ({"labels": torch.ones(3, 5)}, "must be integers"),
        ({"labels": UNLABELLED - 101}, "sample 0 of a batch has no labelled token"),
        ({"attention_mask": torch.ones(3, 4)}, r"must be of shape \(3, 5\)"),
    ],
)
def test_labels_of_tokens_that_are_refused(change, message):
    with pytest.raises(ObjectiveError, match=message):
        losses_of(tiny.bert_tokens(), {**BATCH, **change}, TokenClassification())
