"""Adapters that peft reloads as another model."""

import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM

from pydvl_datainf import ModelError
from tuned import changed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


def tuned_adapter(model, path, initial=None, **settings):
    """Saves an adapter after some tuning, and gives the logits of what was tuned."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **settings)
    adapted = get_peft_model(model, config).eval()
    conversion = {}
    if initial is not None:
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(initial)
        adapted.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
        conversion = {"path_initial_model_for_weight_conversion": str(initial)}
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    logits = logits_of(adapted)
    adapted.save_pretrained(path, **conversion)
    return logits


@torch.no_grad()
def logits_of(model):
    return model(torch.arange(2, 9).unsqueeze(0)).logits


def reloaded(base, adapter):
    torch.manual_seed(2)
    return logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


def test_fast_pissa_is_another_model_when_it_is_loaded_which_a_warning_tells(files, tmp_path):
    path = tmp_path / "pissa"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, init_lora_weights="pissa_niter_4")
    assert (reloaded(files.model, path) - logits).abs().max() > 1e-4  # the premise, in peft itself
    with pytest.warns(UserWarning, match=r"init_lora_weights=pissa_niter_4.*save it as plain LoRA"):
        replace(files, adapter=str(path)).load()


def test_a_fast_pissa_that_was_converted_is_the_model_that_was_tuned(files, tmp_path):
    path = tmp_path / "converted"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, tmp_path / "initial", init_lora_weights="pissa_niter_4")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*init_lora_weights")
        found = logits_of(replace(files, adapter=str(path)).load())
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", ["pissa", "olora", "orthogonal", "gaussian", "eva", "mica"])
@pytest.mark.filterwarnings("ignore:.*EVA:UserWarning")
def test_other_initialisations_are_the_model_that_was_tuned(files, tmp_path, made):
    path = tmp_path / "other"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, init_lora_weights=made)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*init_lora_weights=")
        found = logits_of(replace(files, adapter=str(path)).load())
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_lora_ga_is_another_model_when_it_is_loaded_which_a_warning_tells(files, tmp_path):
    path = tmp_path / "lora_ga"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], init_lora_weights="lora_ga"
    )
    config.lora_ga_config = LoraGAConfig()
    ids = torch.arange(2, 9).unsqueeze(0)
    preprocess_loraga(base, config, lambda: base(input_ids=ids, labels=ids).loss.backward())
    adapted = get_peft_model(base, config).eval()
    logits = logits_of(adapted)
    adapted.save_pretrained(path)
    assert (reloaded(files.model, path) - logits).abs().max() > 1e-4  # the premise, in peft itself
    with pytest.warns(UserWarning, match=r"init_lora_weights=lora_ga.*save it as plain LoRA"):
        replace(files, adapter=str(path)).load()


@pytest.mark.filterwarnings("ignore:.*corda_config")
def test_corda_is_not_loaded_without_its_data(files, tmp_path):
    changed(tmp_path / "adapter/adapter_config.json", init_lora_weights="corda")
    with pytest.raises(ValueError, match="preprocess_corda"):  # the premise, in peft itself
        reloaded(files.model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"init_lora_weights=corda.*save it as plain LoRA"):
        files.load()
