"""How many of our functions a warm call of `influences` passes, and that its checks hold."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pydvl_datainf
from pydvl_datainf import BatchError, DataInfInfluence, ModelError

HERE = Path(pydvl_datainf.__file__).parent
GRADIENTS = ("gradients", "objectives")


@pytest.fixture
def warm():
    """A fitted model that was asked before, and what it is asked: 3 test and 5 training samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    train = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    test = torch.randn(3, 4), torch.tensor([0, 1, 2])
    influence = DataInfInfluence(model, F.cross_entropy).fit([train])
    for _ in range(5):  # by which no sample is due to be computed alone: that is no common call
        influence.influences(*test, *train)
    return influence, (*test, *train)


def entered(call):
    """Our named functions that a call enters, each once, by file."""
    found = set()

    def note(frame, event, arg):
        code = frame.f_code
        is_ours = event == "call" and Path(code.co_filename).is_relative_to(HERE)
        # Comprehensions and lambdas belong to the function around them.
        found.update([code] if is_ours and not code.co_name.startswith("<") else [])

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [Path(code.co_filename).relative_to(HERE).parts[0] for code in found]


def test_a_warm_call_passes_few_functions(warm):
    influence, samples = warm
    folders = entered(lambda: influence.influences(*samples))
    assert len([folder for folder in folders if folder not in GRADIENTS]) <= 43
    assert len(folders) <= 90


def test_a_warm_call_notices_that_the_model_changed(warm):
    influence, samples = warm
    influence.influences(*samples)
    influence.model[0].bias.data.view(-1)[3] += 1e-3
    with pytest.raises(ModelError, match=r"changed after fit \(1 tensors: 0\.bias\)"):
        influence.influences(*samples)


@pytest.mark.parametrize("side", [0, 2])
def test_a_warm_call_names_what_is_wrong_with_a_batch(warm, side):
    influence, samples = warm
    shorter, text = list(samples), list(samples)
    shorter[side] = shorter[side][:2]
    with pytest.raises(BatchError, match=r"differ in their number of samples: \{'x': 2, 'y': "):
        influence.influences(*shorter)
    text[side + 1] = "labels"
    with pytest.raises(BatchError, match="'y' of the batch is a str, not a tensor"):
        influence.influences(*text)
