"""Models with the linear layer of GPT-2, whose weight is stored as (inputs, outputs)."""

import copy

from torch import nn
from transformers.pytorch_utils import Conv1D


def transposed(model):
    """The same model with such layers in the place of its linear layers that have a bias."""
    if type(model) is nn.Linear and model.bias is not None:
        layer = Conv1D(model.out_features, model.in_features).to(model.weight.dtype)
        layer.weight.data, layer.bias.data = model.weight.data.T.clone(), model.bias.data.clone()
        return layer
    model = copy.deepcopy(model)
    for name, module in model.named_children():
        setattr(model, name, transposed(module))
    return model
