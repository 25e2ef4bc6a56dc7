"""A tuned model of the tests of preferences."""

import pytest
import torch

import tiny


@pytest.fixture
def adapted():
    """Llama with adapters that were moved from their start."""
    torch.manual_seed(4)
    return tiny.lora(tiny.llama(), ["q_proj", "v_proj"], lora_dropout=0.5).double().eval()
