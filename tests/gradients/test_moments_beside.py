"""Moments from the passes of gradients, against those from passes of their own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from pydvl_datainf import CausalLM, DataInfInfluence, EkfacInfluence
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import gradient_engine
from pydvl_datainf.gradients.by_length import by_length
from pydvl_datainf.gradients.moments import LayerMoments, linear_blocks
from pydvl_datainf.gradients.moments_beside import with_moments
from pydvl_datainf.objectives import OutputLoss
from zoo import Flat, Tied

MSE = OutputLoss(F.mse_loss)


class Recurrent(Flat):
    """A layer behind one that capture does not explain."""

    def __init__(self):
        super().__init__(nn.Linear(4, 2))
        self.inner = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return super().forward(self.inner(x)[0])


def layers():
    conv = nn.Conv1d(3, 4, 2, padding=1)
    return Flat(conv, nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def numbers(*shape, outputs):
    return lambda: (torch.randn(7, *shape).double(), torch.randn(7, outputs).double())


def normed():
    """Whose first weight follows from two parameters, which are explained at the layer too."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
    return Flat(first, nn.Tanh(), nn.Linear(5, 2))


CASES = {
    "layers": (layers, MSE, numbers(3, 5, outputs=16)),
    "weights of other parameters": (normed, MSE, numbers(3, outputs=2)),
    "tied": (Tied, MSE, lambda: (torch.randint(0, 6, (7, 4)), torch.randn(7, 6).double())),
    "recurrent": (Recurrent, MSE, numbers(5, 3, outputs=10)),
    "texts": (
        lambda: tiny.moved(tiny.lora(tiny.llama(), ["q_proj", "v_proj"])),
        CausalLM(),
        lambda: tiny.answers(7, 8),
    ),
}


def cut(batch, *sizes):
    if isinstance(batch, dict):
        parts = {name: t.split(sizes) for name, t in batch.items()}
        return [{name: t[i] for name, t in parts.items()} for i in range(len(sizes))]
    return list(zip(*(t.split(sizes) for t in batch), strict=True))


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize(
    ("case", "kind"), [*((case, "auto") for case in CASES), ("layers", "functional")]
)
def test_rows_and_moments_are_those_of_passes_of_their_own(case, kind):
    torch.manual_seed(0)
    make, objective, data = CASES[case]
    model, batch, max_tokens = make().double().eval(), data(), {"texts": 9}.get(case)
    blocks = Blocks.from_model(model, "module")
    engine = by_length(gradient_engine(kind, model, objective, blocks), max_tokens)
    beside, apart = (LayerMoments(model, objective, linear_blocks(model, blocks)) for _ in range(2))
    both = with_moments(engine, beside)
    for part in cut(batch, 2, 2, 1, 2):
        rows = both.rows(part)
        apart.add(part)
        torch.testing.assert_close(rows, engine.rows(part), rtol=0, atol=1e-12)
    assert beside.sums.keys() == apart.sums.keys() != set()
    for block, sums in apart.sums.items():
        largest = [float(moment.abs().max()) for moment in sums]
        for found, expected, scale in zip(beside.sums[block], sums, largest, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * scale)


def test_fit_makes_one_pass_more_for_the_first_batch_alone():
    """Which is compared with plain autograd."""
    torch.manual_seed(0)
    model, calls = nn.Linear(3, 4), []
    data = cut((torch.randn(9, 3), torch.randint(0, 4, (9,))), 3, 3, 3)
    model.register_forward_hook(lambda *_: calls.append(1))
    DataInfInfluence(model, F.cross_entropy).fit(data)
    passes = len(calls)
    EkfacInfluence(model, F.cross_entropy).fit(data)
    assert len(calls) - passes == passes + 1
