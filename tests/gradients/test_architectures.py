"""Rows of language and image models equal one backward pass per sample, in each precision."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import dense
import tiny
from captured import flat_rows
from pydvl_datainf import CausalLM, SequenceClassification, TokenClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, capture

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


class Translation:
    """The mean cross entropy of each sample's targets: an objective of the user's own."""

    def losses(self, model, batch):
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits.mT, batch["labels"], reduction="none")
        return losses.sum(1) / (batch["labels"] != -100).sum(1)


@dataclass(frozen=True)
class Case:
    """A model with its objective, the loss of one sample written plainly, and batches."""

    model: Callable[..., torch.nn.Module]
    objective: Any
    loss: Callable[..., torch.Tensor]
    batch: Callable[..., dict[str, torch.Tensor]]


def adapted(build, *targets, **kwargs):
    return lambda **settings: tiny.lora(build(**settings), list(targets), **kwargs)


CLASSES = (SequenceClassification(), tiny.classification_loss, tiny.labelled_texts)
ANSWERS = (CausalLM(), tiny.answer_loss, tiny.answers)
IMAGES = (SequenceClassification(), tiny.classification_loss, tiny.images)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES = {
    "bert": Case(tiny.bert, *CLASSES),
    "bert, lora": Case(adapted(tiny.bert, "query", "value"), *CLASSES),
    "bert, tokens": Case(
        tiny.bert_tokens, TokenClassification(), tiny.token_loss, tiny.labelled_tokens
    ),
    "bert, masked": Case(
        tiny.bert_masked, TokenClassification(), tiny.token_loss, tiny.labelled_tokens
    ),
    "roberta": Case(tiny.roberta, *CLASSES),
    "roberta, lora": Case(adapted(tiny.roberta, "query", "dense"), *CLASSES),
    "gpt2": Case(tiny.gpt2, *ANSWERS),
    "gpt2, lora": Case(adapted(tiny.gpt2, "c_attn", fan_in_fan_out=True), *ANSWERS),
    "llama": Case(tiny.llama, *ANSWERS),
    "llama, tied": Case(lambda **k: tiny.llama(tie_word_embeddings=True, **k), *ANSWERS),
    "llama, lora": Case(adapted(tiny.llama, "q_proj", "v_proj", "lm_head"), *ANSWERS),
    "llama, classes": Case(tiny.llama_classifier, *CLASSES),
    "qwen2": Case(tiny.qwen2, *ANSWERS),
    "qwen2, lora": Case(adapted(tiny.qwen2, "q_proj", "down_proj"), *ANSWERS),
    "mistral": Case(tiny.mistral, *ANSWERS),
    "mixtral": Case(tiny.mixtral, *ANSWERS),
    "mixtral, lora": Case(adapted(tiny.mixtral, "q_proj", "v_proj"), *ANSWERS),
    "mixtral, lora of experts": Case(adapted(tiny.mixtral, target_parameters=EXPERTS), *ANSWERS),
    "qwen2 moe": Case(tiny.qwen2_moe, *ANSWERS),
    "qwen2 moe, lora": Case(
        adapted(tiny.qwen2_moe, "q_proj", "shared_expert.up_proj", "shared_expert.down_proj"),
        *ANSWERS,
    ),
    "opt": Case(tiny.opt, *ANSWERS),
    "opt, lora": Case(adapted(tiny.opt, "q_proj", "fc1", "fc2"), *ANSWERS),
    "t5": Case(tiny.t5, Translation(), tiny.translation_loss, tiny.translations),
    "bart": Case(tiny.bart, Translation(), tiny.translation_loss, tiny.translations),
    "t5, lora": Case(
        adapted(tiny.t5, "q", "v"), Translation(), tiny.translation_loss, tiny.translations
    ),
    "swin": Case(tiny.swin, *IMAGES),
    "swin, lora": Case(adapted(tiny.swin, "q_proj", "fc1"), *IMAGES),
    "vit": Case(tiny.vit, *IMAGES),
    "vit, lora": Case(adapted(tiny.vit, "q_proj", "v_proj"), *IMAGES),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(11)
    return CASES[request.param]


def engine_of(case, model, **kwargs):
    return CaptureEngine(model, case.objective, Blocks.from_model(model, "module"), **kwargs)


SIZES = {"sdpa": ((4, 7), (1, 5), (6, 6), (3, 9)), "eager": ((4, 7), (6, 6))}


@pytest.mark.parametrize("attention", SIZES)
def test_rows_are_those_of_one_backward_pass_per_sample(case, attention):
    """Also where a batch has as many samples as positions, and after a batch of one.

    Eager attention takes its softmax in float32, so that the zero gradients of key biases are noise
    which a float64 model does not explain.
    """
    model = case.model(attn_implementation=attention).double().eval()
    engine = engine_of(case, model, strict=attention == "sdpa")
    for length, positions in SIZES[attention]:
        batch = tiny.in_float64(case.batch(length, positions))
        exact = dense.gradients(model, case.loss, batch, tiny.names_of(model))
        tiny.assert_rows_close(flat_rows(engine, batch), exact)


def test_a_model_is_compared_in_its_first_batch_whatever_the_sizes(case, monkeypatch):
    """One pass more for each batch would take half as long again."""
    compared = []
    compare = capture.compared
    monkeypatch.setattr(
        capture, "compared", lambda *given: (compared.append(1), compare(*given))[1]
    )
    engine = engine_of(case, case.model().eval())
    engine.rows(case.batch(4, 7))
    assert compared
    compared.clear()
    for length, positions in ((6, 6), (3, 9), (4, 7), (2, 5), (5, 8)):
        engine.rows(case.batch(length, positions))
    assert not compared


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_rows_of_narrower_models(case, dtype, bound):
    model = case.model().to(dtype).eval()
    batch = case.batch()
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    rows = flat_rows(engine_of(case, model), narrow)
    wide = dense.in_float64(model)
    exact = dense.gradients(wide, case.loss, tiny.in_float64(narrow), tiny.names_of(wide))
    assert rows.dtype == torch.float32
    assert ((rows - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


def test_layers_that_see_positions_beside_texts():
    torch.manual_seed(11)
    case = Case(adapted(tiny.deberta, "query_proj", "value_proj"), *CLASSES)
    model = case.model().double().eval()
    engine = engine_of(case, model, strict=True)
    for length, positions in ((4, 7), (1, 5), (6, 6), (3, 9)):
        batch = case.batch(length, positions)
        exact = dense.gradients(model, case.loss, batch, tiny.names_of(model))
        tiny.assert_rows_close(flat_rows(engine, batch), exact)


def test_texts_of_one_length_need_no_mask(case):
    model = case.model().double().eval()
    engine = engine_of(case, model, strict=True)
    batch = tiny.in_float64(tiny.joined(*[case.batch(1, 6) for _ in range(3)]))
    exact = dense.gradients(model, case.loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(flat_rows(engine, batch), exact)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows.roll(1, 0),
        lambda rows: rows / len(rows),
        lambda rows: rows + 1e-6 * rows.norm(dim=1, keepdim=True),
    ],
    ids=["samples swapped", "divided by the batch", "off by a millionth"],
)
@pytest.mark.parametrize("name", ["bert", "llama, lora", "vit"])
def test_a_wrong_row_is_noticed(name, wrong):
    torch.manual_seed(11)
    case = CASES[name]
    model = case.model().double().eval()
    batch = tiny.in_float64(case.batch())
    exact = dense.gradients(model, case.loss, batch, tiny.names_of(model))
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(wrong(exact), exact)
