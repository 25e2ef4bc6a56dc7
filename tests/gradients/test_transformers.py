"""Rows of transformers models under padding, other masks, checkpointing and tied weights."""

import pytest
import torch
from torch.nn import functional as F

import dense
import tiny
from captured import flat_rows
from pydvl_datainf import CausalLM, DataInfInfluence, ModelError, SequenceClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

CLASSES = (SequenceClassification(), tiny.classification_loss, tiny.labelled_texts)
ANSWERS = (CausalLM(), tiny.answer_loss, tiny.answers)


def engine_of(model, objective=CLASSES[0]):
    return CaptureEngine(model, objective, Blocks.from_model(model, "module"), strict=True)


def truth(model, batch, loss=tiny.classification_loss):
    return dense.gradients(model, loss, batch, tiny.names_of(model))


def lora_bert(**kwargs):
    return tiny.lora(tiny.bert(**kwargs), ["query", "value"])


# Padding and masks


@pytest.mark.parametrize("build", [lora_bert, tiny.roberta, tiny.llama_classifier])
def test_padding_does_not_change_a_row(build):
    torch.manual_seed(0)
    model = build().double().eval()
    batch = tiny.labelled_texts(4, 7)
    longer = {k: F.pad(v, (0, 3 * (v.ndim - 1))) for k, v in batch.items()}
    assert longer["input_ids"].shape == (4, 10)
    engine = engine_of(model)
    tiny.assert_rows_close(flat_rows(engine, longer), flat_rows(engine, batch))


@pytest.mark.parametrize("build", [lora_bert, tiny.llama_classifier])
def test_a_mask_that_is_left_out_is_noticed(build):
    """The control of the tests with masks: premise, the tokens under the mask are not padding."""
    torch.manual_seed(0)
    model = build().double().eval()
    batch = tiny.labelled_texts(4, 7)
    batch["input_ids"] = torch.randint(1, 40, (4, 7))
    batch["attention_mask"][:, 2] = 0
    exact = truth(model, batch)
    tiny.assert_rows_close(flat_rows(engine_of(model), batch), exact)
    del batch["attention_mask"]
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(flat_rows(engine_of(model), batch), exact)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("build", [lora_bert, tiny.llama_classifier])
def test_masks_of_other_types(build, dtype):
    torch.manual_seed(0)
    model = build().double().eval()
    batch = tiny.labelled_texts(4, 7)
    exact = truth(model, batch)
    other = {**batch, "attention_mask": batch["attention_mask"].to(dtype)}
    tiny.assert_rows_close(flat_rows(engine_of(model), other), exact)


def test_token_types():
    torch.manual_seed(0)
    model = tiny.bert().double().eval()
    engine = engine_of(model)
    for length, positions in ((4, 7), (1, 5), (3, 9)):
        batch = tiny.labelled_texts(length, positions)
        batch["token_type_ids"] = (torch.arange(positions) > 2).long().expand(length, -1)
        exact = truth(model, batch)
        tiny.assert_rows_close(flat_rows(engine, batch), exact)
        untyped = {k: v for k, v in batch.items() if k != "token_type_ids"}
        with pytest.raises(AssertionError):
            tiny.assert_rows_close(flat_rows(engine, untyped), exact)


# Weights that are tied, and an output layer that is called for some positions


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [tiny.gpt2, tiny.llama, tiny.qwen2])
def test_the_output_layer_is_differentiated_where_it_is_called(build, tied):
    """Premise: a tied weight is one parameter, used by two layers that see different positions."""
    torch.manual_seed(0)
    model = build(tie_word_embeddings=tied).double().eval()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    engine = engine_of(model, CausalLM())
    assert ("lm_head" in engine.blocks.names) != tied
    for length, positions in ((4, 7), (1, 5), (3, 9)):
        batch = tiny.answers(length, positions)
        exact = truth(model, batch, tiny.answer_loss)
        tiny.assert_rows_close(flat_rows(engine, batch), exact)


# Activation checkpointing, which is active in training mode only


def checkpointed(build, reentrant):
    """In training mode without dropout."""
    torch.manual_seed(0)
    model = build().double()
    for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.0
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


CHECKPOINTED = {
    "bert": (tiny.bert, *CLASSES),
    "bert, lora": (lora_bert, *CLASSES),
    "gpt2": (lambda: tiny.gpt2(attn_pdrop=0.0), *ANSWERS),
    "llama": (tiny.llama, *ANSWERS),
    "llama, lora": (lambda: tiny.lora(tiny.llama(), ["q_proj", "lm_head"]), *ANSWERS),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", CHECKPOINTED)
class TestCheckpointing:
    def test_rows_without_reentrance(self, name):
        build, objective, loss, texts = CHECKPOINTED[name]
        model = checkpointed(build, reentrant=False)
        engine = engine_of(model, objective)
        for length, positions in ((4, 7), (1, 5), (3, 9)):
            batch = texts(length, positions)
            exact = truth(model.eval(), batch, loss)
            tiny.assert_rows_close(flat_rows(engine, batch), exact)
            model.train()
            tiny.assert_rows_close(flat_rows(engine, batch), exact)

    @pytest.mark.parametrize("length", [1, 4])
    def test_reentrance_is_refused(self, name, length):
        """Also where only adapters inside it are trained, whose rows would be zeros."""
        build, objective, loss, texts = CHECKPOINTED[name]
        model = checkpointed(build, reentrant=True)
        engine, batch = engine_of(model, objective), texts(length, 7)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"re-entrant form hides the graph.*model.eval"):
                engine.rows(batch)
            model.eval()
            tiny.assert_rows_close(flat_rows(engine, batch), truth(model, batch, loss))
            model.train()


# From texts to influences


@pytest.mark.parametrize(
    ("build", "case"),
    [(lora_bert, CLASSES), (lambda: tiny.lora(tiny.llama(), ["q_proj", "v_proj"]), ANSWERS)],
    ids=["classifier", "language model"],
)
def test_datainf_of_a_lora_model_is_that_of_the_formula(build, case):
    torch.manual_seed(1)
    objective, loss, texts = case
    model = build().double().eval()
    fitted, test = [texts(4, 7), texts(3, 9)], texts(2, 6)
    influence = DataInfInfluence(model, objective).fit(fitted)
    assert len(influence.block_names) == 8
    total = 0
    for block, parameters in influence.parameter_dict.items():
        g = torch.cat([dense.gradients(model, loss, b, list(parameters)) for b in fitted])
        v = dense.gradients(model, loss, test, list(parameters))
        damping = dense.automatic_damping(g)
        assert influence.damping[block] == pytest.approx(damping, rel=1e-9)
        total = total + v @ dense.datainf_matrix(g, damping) @ g.T
    torch.testing.assert_close(
        influence.training_influences(test), total, rtol=1e-9, atol=1e-10 * float(total.abs().max())
    )
