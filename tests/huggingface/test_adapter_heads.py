"""Which heads an adapter brought."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pydvl_datainf.huggingface import ModelFiles


@pytest.mark.parametrize(
    ("weights", "heads"),
    [
        (["classifier.weight", "classifier.bias"], ("classifier",)),
        (["score.modules_to_save.weight", "classifier.weight"], ("classifier", "score")),
        (["my_classifier.weight", "scores.weight"], ()),
    ],
)
def test_heads_are_those_that_the_adapter_holds(tmp_path, weights, heads):
    told = {"peft_type": "LORA", "modules_to_save": ["classifier", "score"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    tensors = {f"base_model.model.{name}": torch.ones(1) for name in weights}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    files = ModelFiles("sequence-classification", "base", str(tmp_path))
    assert files.adapter_heads() == heads


def test_heads_of_weights_that_are_not_here_are_those_of_the_configuration(tmp_path):
    told = {"peft_type": "LORA", "modules_to_save": ["score"], "bias": "lora_only"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    files = ModelFiles("sequence-classification", "base", str(tmp_path))
    assert files.adapter_heads() == ("score", "biases (lora_only)")
