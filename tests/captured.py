"""Rows by capture, and random data for them."""

import torch
from torch.nn import functional as F

from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.objectives import OutputLoss


def engine(model, loss=F.mse_loss, **kwargs):
    return CaptureEngine(model, OutputLoss(loss), Blocks.from_model(model, "module"), **kwargs)


def rows(engine, batch):
    return engine.blocks.flatten(engine.rows(batch))


def data(length, *shape, targets=2):
    return torch.randn(length, *shape).double(), torch.randn(length, targets).double()
