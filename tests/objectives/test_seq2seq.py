"""Seq2SeqLM: losses of encoder-decoders and their rows by one backward pass per sample."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import ObjectiveError, Seq2SeqLM
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")

MODELS = {
    "t5": tiny.t5,
    "t5, lora": lambda: tiny.lora(tiny.t5(), ["q", "v"], task_type="SEQ_2_SEQ_LM"),
    "bart": tiny.bart,
    "m2m100": tiny.m2m100,
    "blenderbot": tiny.blenderbot,
    "bart, lora": lambda: tiny.lora(tiny.bart(), ["q_proj", "fc1"], task_type="SEQ_2_SEQ_LM"),
}


@pytest.fixture(params=MODELS)
def name(request):
    torch.manual_seed(2)
    return request.param


@pytest.fixture
def model(name):
    return MODELS[name]().double().eval()


def targets(length=4, positions=7):
    """Sources and targets of different lengths; the decoder's input is left to the model."""
    batch = tiny.translations(length, positions)
    return {k: v for k, v in batch.items() if not k.startswith("decoder")}


def loss_of_tokens(model, batch):
    """From the tokens alone: padding, on the right, is cut off."""
    labels = batch["labels"][batch["labels"] != -100]
    start = torch.tensor([model.config.decoder_start_token_id])
    decoder_input_ids = torch.cat([start, labels[:-1]])[None]
    input_ids = batch["input_ids"][:, batch["attention_mask"][0].bool()]
    logits = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits
    return F.cross_entropy(logits[0].double(), labels)


def losses_of(model, batch, objective=None):
    with torch.no_grad():
        return (objective or Seq2SeqLM()).losses(model, batch)


def exact_losses(model, batch, loss=loss_of_tokens):
    with torch.no_grad():
        return torch.stack(dense.sample_losses(model, loss, batch))


def rows_of(model, batch, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return blocks.flatten(CaptureEngine(model, Seq2SeqLM(), blocks, **kwargs).rows(batch))


# Losses


def test_the_loss_of_one_sample_is_that_of_transformers(model):
    for batch in (targets(1, 7), tiny.translations(1, 5)):
        exact = model(**batch).loss.detach().reshape(1)
        torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)


def test_losses_are_those_of_the_tokens_alone(model):
    batch = targets()
    counts = (batch["labels"] != -100).sum(1)
    assert len(counts.unique()) > 1
    exact = exact_losses(model, batch)
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)
    assert (model(**batch).loss - exact.mean()).abs() > 1e-6  # it averages over all tokens
    sums = losses_of(model, batch, Seq2SeqLM(reduction="sum"))
    torch.testing.assert_close(sums, exact * counts, rtol=1e-9, atol=0)


def test_padding_and_companions_do_not_matter(model):
    batch = targets()
    losses = losses_of(model, batch)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    wide = {k: F.pad(v, (0, 2), value=fill[k]) for k, v in batch.items()}
    part = {k: v[[3, 1]] for k, v in wide.items()}
    torch.testing.assert_close(losses_of(model, wide), losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses_of(model, part), losses[[3, 1]], rtol=1e-9, atol=0)


def test_targets_outside_the_decoders_mask_do_not_count(model):
    batch = tiny.translations()
    labelled = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == -100, 5)}
    exact = losses_of(model, batch)
    torch.testing.assert_close(losses_of(model, labelled), exact, rtol=1e-9, atol=0)
    del labelled["decoder_attention_mask"]
    shorter = (batch["labels"] == -100).any(1)
    assert ((losses_of(model, labelled) - exact).abs() > 1e-6).equal(shorter)


def test_what_the_decoder_is_given_may_be_given(model):
    batch = targets()
    batch["decoder_input_ids"] = torch.randint(3, 40, batch["labels"].shape)
    exact = exact_losses(model, batch, tiny.translation_loss)
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)
    assert ((exact - exact_losses(model, batch)).abs() > 1e-6).all()


def test_other_names_and_types_of_labels(model):
    batch = targets()
    exact = losses_of(model, batch)
    other = {k: v for k, v in batch.items() if k != "labels"}
    other["target"] = batch["labels"].to(torch.int32)
    losses = losses_of(model, other, Seq2SeqLM(labels="target"))
    torch.testing.assert_close(losses, exact, rtol=1e-9, atol=0)


def test_speech_to_text_is_given_what_whisper_is_trained_on():
    torch.manual_seed(2)
    model = tiny.whisper().double().eval()
    batch = {
        "input_features": torch.randn(3, 4, 20).double(),
        "labels": torch.randint(3, 40, (3, 5)),
    }
    batch["labels"][1, 3:] = -100
    singles = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
    exact = torch.stack([model(**one).loss.detach() for one in singles])
    torch.testing.assert_close(losses_of(model, batch), exact, rtol=1e-9, atol=0)


# Rows


def test_rows_are_those_of_one_backward_pass_per_sample(name, model):
    """Premise: sources and targets differ in their lengths."""
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, Seq2SeqLM(), blocks, strict="lora" in name)
    for length, positions in ((4, 7), (1, 5), (5, 7), (3, 9)):
        batch = targets(length, positions)
        assert batch["labels"].shape[1] == positions - 2
        exact = dense.gradients(model, loss_of_tokens, batch, tiny.names_of(model))
        tiny.assert_rows_close(blocks.flatten(engine.rows(batch)), exact)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 5e-2)])
def test_rows_of_narrower_models(model, dtype, bound):
    batch, narrow = targets(), model.to(dtype)
    rows = rows_of(narrow, batch)
    wide = dense.in_float64(narrow)
    exact = dense.gradients(wide, loss_of_tokens, batch, tiny.names_of(wide))
    assert rows.dtype == torch.float32
    assert ((rows - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


def test_rows_of_other_targets_are_noticed(model):
    batch = targets()
    other = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == -100, 5)}
    exact = dense.gradients(model, loss_of_tokens, batch, tiny.names_of(model))
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(rows_of(model, other), exact)


# What is refused


class Plain(nn.Module):
    """Does not tell how targets become the decoder's input."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(40, 4), nn.Linear(4, 40)

    def forward(self, input_ids, decoder_input_ids):
        h = self.embedding(decoder_input_ids) + self.embedding(input_ids).mean(1, keepdim=True)
        return SimpleNamespace(logits=self.out(h))


def test_a_plain_model_needs_the_decoders_input():
    torch.manual_seed(0)
    plain = Plain().double()
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.tensor([[1], [2]])}
    with pytest.raises(ObjectiveError, match=r"a Plain does not tell.*'decoder_input_ids'"):
        losses_of(plain, batch)
    batch["decoder_input_ids"] = torch.zeros(2, 1, dtype=torch.long)
    exact = dense.gradients(plain, tiny.translation_loss, batch, tiny.names_of(plain))
    tiny.assert_rows_close(rows_of(plain, batch, strict=True), exact)


SOURCES = {"input_ids": torch.ones(3, 5, dtype=torch.long)}
LABELS = torch.ones(3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (SOURCES, r"the key 'labels', got \['input_ids'\]"),
        ((LABELS, LABELS), r"an \(x, y\) pair"),
        ({**SOURCES, "labels": LABELS[:, 0]}, r"shape \(B, T\).*got .*\(3,\)"),
        ({**SOURCES, "labels": LABELS[..., None]}, r"shape \(B, T\).*got .*\(3, 4, 1\)"),
        ({**SOURCES, "labels": LABELS.float()}, "must be integers"),
        ({**SOURCES, "labels": LABELS, "decoder_input_ids": LABELS[:, 1:]}, r"shape \(3, 3\)"),
        ({**SOURCES, "labels": LABELS, "decoder_attention_mask": LABELS[:, 1:]}, r"shape \(3, 4\)"),
        ({**SOURCES, "labels": LABELS - 101}, "Seq2SeqLM: sample 0 of a batch has no labelled"),
    ],
)
def test_batches_that_are_refused(batch, message):
    with pytest.raises(ObjectiveError, match=message):
        losses_of(tiny.t5(), batch)


def test_there_is_no_other_reduction():
    with pytest.raises(ObjectiveError, match=r'"mean" or "sum", got \'none\''):
        Seq2SeqLM(reduction="none")
