"""Adapters of a quantised base, tuned again: against a loop of the tests' own."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from pydvl_datainf import JobError
from pydvl_datainf.huggingface.models import forbid_packing
from pydvl_datainf.huggingface.untuned import load_untuned
from pydvl_datainf.jobfile.validation import recipe_of
from tuned_again import (
    LORA,
    adamw,
    adapted,
    orders,
    retraining,
    review_loss,
    review_losses,
    sum_loss,
    sum_losses,
    tuned_plainly,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
pytest.importorskip("bitsandbytes", reason="needs the extra [quantized]")


def config(**bits):
    return BitsAndBytesConfig(
        bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, **bits
    )


def quantised(tuned, seed, **bits):
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(
        tuned.causal,
        dtype=torch.float32,
        quantization_config=config(**bits),
        device_map={"": "cpu"},
    )
    forbid_packing(base)
    base.requires_grad_(False)
    lora = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    return adapted(base, **lora, target_modules=["q_proj", "v_proj"]).eval()


def test_a_head_that_the_base_does_not_have_stays_whole(classes, tuned, tmp_path):
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(
        tuned.encoder,
        num_labels=2,
        dtype=torch.float32,
        quantization_config=config(load_in_4bit=True, llm_int8_skip_modules=["classifier"]),
        device_map={"": "cpu"},
    )
    forbid_packing(base)
    model = adapted(base.requires_grad_(False), **LORA).eval()
    tuned_plainly(model, orders(range(10), 5), review_loss, adamw(model))
    again = retraining(tmp_path, classes | {"quantization": "4bit", "dtype": "float32"})
    given = again.prepared.builder().model.named_parameters()
    assert {p.dtype for name, p in given if "classifier" in name} == {torch.float32}
    np.testing.assert_allclose(again(range(10)), review_losses(model), rtol=1e-4)


@pytest.fixture
def plain(causal, tmp_path):
    """What the base of whole weights becomes: the negative control."""
    return retraining(tmp_path, causal | {"dtype": "float32"})


@pytest.mark.parametrize("name", ["4bit", "4bit-double"])
def test_an_adapter_of_a_base_of_4_bits(causal, tuned, tmp_path, plain, name):
    double = {"load_in_4bit": True, "bnb_4bit_use_double_quant": name == "4bit-double"}
    model = quantised(tuned, 5, **double)
    before = sum_losses(model)
    tuned_plainly(model, orders(range(10), 5), sum_loss, adamw(model))
    again = retraining(tmp_path, causal | {"quantization": name, "dtype": "float32"})
    found = again(range(10))
    np.testing.assert_allclose(found, sum_losses(model), rtol=1e-4)
    assert np.abs(found - before).max() > 1e-2  # the premise: there was something to learn
    assert f'"quantization": "{name}"' in recipe_of(again)  # whose losses are kept apart
    assert "quantization" not in recipe_of(plain)


def test_a_base_of_8_bits_is_tuned_again(causal, tmp_path, plain):
    again = retraining(tmp_path, causal | {"quantization": "8bit", "dtype": "float32"})
    begun = load_untuned(again._files, None, None)
    assert sum(p.dtype == torch.int8 for p in begun.parameters()) == 14
    found, whole = again(range(10)), plain(range(10))
    np.testing.assert_allclose(found, whole, rtol=1e-3)  # 8 bits change little
    assert (found != whole).all()


def test_quantised_weights_are_not_tuned_themselves(whole, tuned, tmp_path):
    with pytest.raises(JobError, match="quantised weights are not tuned themselves: with 'quanti"):
        retraining(tmp_path, {**whole, "quantization": "4bit"}, base=str(tuned.encoder))
