"""Rows of transformers models: padding, masks, fused attention, LoRA, tied weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import dense
from pydvl_datainf import DataInfInfluence, SequenceClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0}


def bert(**kwargs):
    config = BertConfig(**SIZES, intermediate_size=24, max_position_embeddings=12, **kwargs)
    return BertForSequenceClassification(config)


def llama(**kwargs):
    return LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=2, **kwargs))


def lora(model, targets, **kwargs):
    """A LoRA-adapted copy whose B matrices are not zero, so that A has a gradient."""
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, **kwargs))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "embedding_B" in name:
            parameter.data.normal_(std=0.1)
    return adapted


def classification_batch(length=4, positions=7):
    """Token ids with padding on the right of different lengths, its mask, and labels."""
    mask = torch.ones(length, positions, dtype=torch.long)
    for i in range(length):
        mask[i, positions - i % 3 :] = 0
    ids = torch.randint(1, 40, (length, positions)) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (length,)),
    }


def classification_loss(model, batch):
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits.double(), batch["labels"])


class NextToken:
    """Mean cross entropy of the tokens that are not padding, each sample's own."""

    def losses(self, model, batch):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["input_ids"][:, 1:]
        tokens = F.cross_entropy(logits.mT.float().to(logits), labels, reduction="none")
        mask = batch["attention_mask"][:, 1:]
        return (tokens * mask).sum(1) / mask.sum(1)


def next_token_loss(model, batch):
    return NextToken().losses(model, batch).sum()


MODELS = {
    "bert": (bert, SequenceClassification(), classification_loss),
    "bert lora": (
        lambda **k: lora(bert(**k), ["query", "value"]),
        SequenceClassification(),
        classification_loss,
    ),
    "llama lora": (
        lambda **k: lora(llama(**k), ["q_proj", "v_proj"]),
        SequenceClassification(),
        classification_loss,
    ),
    "llama": (llama, SequenceClassification(), classification_loss),
    "llama causal, tied": (
        lambda **k: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True, **k)),
        NextToken(),
        next_token_loss,
    ),
    "gpt2": (
        lambda **k: GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=12, **k)
        ),
        NextToken(),
        next_token_loss,
    ),
}


def names_of(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(11)
    return MODELS[request.param]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_are_those_of_one_backward_pass_per_sample(case, attention):
    build, objective, loss = case
    model = build(attn_implementation=attention).double().eval()
    engine = CaptureEngine(model, objective, Blocks.from_model(model, "module"), strict=True)
    for length, positions in ((4, 7), (3, 9), (1, 5)):
        batch = classification_batch(length, positions)
        exact = dense.gradients(model, loss, batch, names_of(model))
        rows = engine.blocks.flatten(engine.rows(batch))
        scale = exact.norm(dim=1, keepdim=True)
        torch.testing.assert_close(rows / scale, exact / scale, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_rows_of_narrower_models(case, dtype, bound):
    build, objective, loss = case
    model = build().to(dtype).eval()
    batch = classification_batch()
    engine = CaptureEngine(model, objective, Blocks.from_model(model, "module"))
    rows = engine.blocks.flatten(engine.rows(batch))
    exact = dense.gradients(dense.in_float64(model), loss, batch, names_of(model))
    assert rows.dtype == torch.float32
    assert ((rows - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


@pytest.mark.parametrize(
    ("build", "targets"), [(bert, ["query", "value"]), (llama, ["q_proj", "v_proj"])]
)
def test_float32_adapters_on_a_bfloat16_model_are_captured(build, targets):
    torch.manual_seed(0)
    model = lora(build().to(torch.bfloat16), targets).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    engine = CaptureEngine(
        model, SequenceClassification(), Blocks.from_model(model, "module"), strict=True
    )
    batch = classification_batch()
    rows = engine.blocks.flatten(engine.rows(batch))
    exact = dense.gradients(
        dense.in_float64(model), classification_loss, batch, list(engine.blocks.shapes)
    )
    assert ((rows - exact).norm(dim=1) <= 2e-2 * exact.norm(dim=1)).all()


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize(
    ("targets", "kwargs"),
    [
        (["query"], {"use_dora": True}),
        (["query"], {"modules_to_save": ["classifier"]}),
        (["word_embeddings"], {}),
    ],
)
def test_adapters_of_other_kinds(targets, kwargs):
    torch.manual_seed(0)
    model = lora(bert(), targets, **kwargs).double().eval()
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, SequenceClassification(), blocks)
    batch = classification_batch()
    exact = dense.gradients(model, classification_loss, batch, list(blocks.shapes))
    torch.testing.assert_close(
        blocks.flatten(engine.rows(batch)), exact, rtol=1e-9, atol=1e-10 * float(exact.abs().max())
    )


def test_padding_does_not_change_a_row():
    torch.manual_seed(0)
    model = lora(bert(), ["query", "value"]).double().eval()
    engine = CaptureEngine(
        model, SequenceClassification(), Blocks.from_model(model, "module"), strict=True
    )
    batch = classification_batch(4, 7)
    longer = {k: F.pad(v, (0, 3)) if v.ndim == 2 else v for k, v in batch.items()}
    first, second = (engine.blocks.flatten(engine.rows(b)) for b in (batch, longer))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_datainf_of_a_lora_model_is_that_of_the_formula():
    torch.manual_seed(1)
    model = lora(bert(), ["query", "value"]).double().eval()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    fitted = [classification_batch(4, 7), classification_batch(3, 9)]
    test = classification_batch(2, 6)
    influence = DataInfInfluence(model, SequenceClassification()).fit(fitted)
    assert len(influence.block_names) == 8
    total = 0
    for block, parameters in influence.parameter_dict.items():
        g = torch.cat(
            [dense.gradients(model, classification_loss, b, list(parameters)) for b in fitted]
        )
        v = dense.gradients(model, classification_loss, test, list(parameters))
        damping = dense.automatic_damping(g)
        assert influence.damping[block] == pytest.approx(damping, rel=1e-9)
        total = total + v @ dense.datainf_matrix(g, damping) @ g.T
    torch.testing.assert_close(
        influence.training_influences(test), total, rtol=1e-9, atol=1e-10 * float(total.abs().max())
    )
