"""Losses that come with the rows: the same numbers as those of each sample alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine, gradient_engine
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.objectives import as_objective

LENGTHS = [3, 7, 2, 7, 4, 1, 5]


class Mean(nn.Module):
    """A classifier of texts by the mean of its tokens, or by what a recurrent layer makes of it."""

    def __init__(self, recurrent=False):
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 3)
        self.rnn = nn.LSTM(4, 4, batch_first=True) if recurrent else None

    def forward(self, ids, mask):
        h = self.embedding(ids)
        h = h if self.rnn is None else self.rnn(h)[0]
        return self.out((h * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))


class TextLoss:
    def losses(self, model, batch):
        out = model(batch["input_ids"], batch["attention_mask"])
        return F.cross_entropy(out, batch["classes"], reduction="none")


def built(**settings):
    torch.manual_seed(4)
    return Mean(**settings).double()


def texts(lengths):
    torch.manual_seed(5)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 6, mask.shape) * mask
    classes = torch.randint(0, 3, (len(lengths),))
    return {"input_ids": ids, "attention_mask": mask, "classes": classes}


def assert_exact(engine, model, batch):
    rows = engine.rows_with_losses(batch)
    losses = torch.cat(dense.sample_losses(model, TextLoss().losses, batch)).detach()
    torch.testing.assert_close(rows.pop(LOSS)[:, 0], losses, rtol=1e-9, atol=1e-12)
    plain = engine.rows(batch)
    assert list(rows) == list(plain)  # and no losses among them
    for block, expected in plain.items():
        torch.testing.assert_close(rows[block], expected, rtol=1e-9, atol=1e-12)
    assert len(losses) == 1 or len(losses.unique()) > 1  # the premise


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("kind", ["capture", "functional"])
def test_losses_are_those_of_each_sample_alone(kind, n):
    model, batch = built(), texts(LENGTHS[:n])
    engine = gradient_engine(kind, model, TextLoss(), Blocks.from_model(model, "module"))
    for _ in range(2):  # compared with plain autograd, then not
        assert_exact(engine, model, batch)


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_what_gets_one_backward_pass_per_sample_has_them_too():
    model, batch = built(recurrent=True), texts(LENGTHS)
    engine = CaptureEngine(model, TextLoss(), Blocks.from_model(model, "module"))
    assert_exact(engine, model, batch)
    assert "rnn.weight_ih_l0" in engine.places.unexplained  # the premise


@pytest.mark.parametrize("max_tokens", [1, 8, 1000])
def test_they_come_back_in_the_order_of_the_batch(max_tokens):
    model, batch = built(), texts(LENGTHS)
    inner = gradient_engine("auto", model, TextLoss(), Blocks.from_model(model, "module"))
    assert_exact(ByLengthEngine(inner, max_tokens), model, batch)


@pytest.mark.parametrize("kind", [CaptureEngine, FunctionalEngine])
def test_they_have_the_dtype_of_the_rows_and_no_graph(kind):
    model = nn.Linear(3, 2).bfloat16()
    x, y = torch.randn(5, 3).bfloat16(), torch.tensor([0, 1, 1, 0, 1])
    objective = as_objective(F.cross_entropy)
    losses = kind(model, objective, Blocks.from_model(model, "module")).rows_with_losses((x, y))
    assert losses[LOSS].dtype == torch.float32
    assert not losses[LOSS].requires_grad
    expected = F.cross_entropy(model(x), y, reduction="none").float().detach()
    torch.testing.assert_close(losses[LOSS][:, 0], expected, rtol=2e-2, atol=2e-2)
