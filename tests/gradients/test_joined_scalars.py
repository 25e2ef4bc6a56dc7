"""A layer's weight from which a number follows that all samples have in common."""

import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x) + x[:, :3] * (0.1 * self.scale.weight.sin().sum())


def test_rows_of_what_scales_the_outputs_are_those_of_autograd():
    torch.manual_seed(0)
    model, x, y = Scaled().double(), torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    blocks = {"scale": ["scale.weight"], "layer": ["layer.weight"]}
    influence = DataInfInfluence(model, F.cross_entropy, block_structure=blocks)
    rows = influence.loss_gradients_by_block(x, y)
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, [model.scale.weight, model.layer.weight])
        for block, g in zip(blocks, grads, strict=True):
            assert g.abs().max() > 1e-3  # premise
            assert torch.allclose(rows[block][i], g.flatten(), rtol=1e-9, atol=1e-12)
