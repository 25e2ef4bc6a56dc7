"""Rows by capture, random data for them, and a comparison with the oracle."""

import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.objectives import OutputLoss


def engine(model, loss=F.mse_loss, **kwargs):
    return CaptureEngine(model, OutputLoss(loss), Blocks.from_model(model, "module"), **kwargs)


def flat_rows(engine, batch):
    return engine.blocks.flatten(engine.rows(batch))


def data(length, *shape, targets=2):
    return torch.randn(length, *shape).double(), torch.randn(length, targets).double()


def batches(*lengths, shape=(3,)):
    for length in lengths:
        yield data(length, *shape)


def assert_right(watched, batch):
    exact = dense.gradients(watched.model, F.mse_loss, batch, list(watched.blocks.shapes))
    torch.testing.assert_close(flat_rows(watched, batch), exact, rtol=1e-9, atol=1e-12)


def assert_all_right(watched, some):
    for batch in some:
        assert_right(watched, batch)


class Table(nn.Module):
    """Owns what others use, and is never called."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
