"""What `fit` keeps solves by itself: each block by its own method, and only on the same model."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import dense
from pydvl_datainf import ModelError
from pydvl_datainf.fingerprint import Seen, fingerprint
from pydvl_datainf.gradients.sources import MemoryRows
from pydvl_datainf.influence.fitted import Fitted
from pydvl_datainf.inverse.lissa import Lissa
from pydvl_datainf.inverse.methods import DATAINF, EXACT, HESSIAN_FREE, SCALED_HESSIAN_FREE

WIDTHS = {"a": 3, "b": 9}
DAMPING = {"a": 0.1, "b": 2.0}
CPU = torch.device("cpu")


def random(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (b, torch.randn(length, d, generator=generator).double()) for b, d in WIDTHS.items()
    )


def fitted(methods, model=None):
    seen = Seen({} if model is None else fingerprint(model))
    rows = random(1, 6)
    parts = [
        OrderedDict((b, G[place]) for b, G in rows.items()) for place in (slice(4), slice(4, 6))
    ]
    return Fitted(MemoryRows(parts, 6), None, DAMPING, CPU, seen, {}, True, methods)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()


def test_each_block_is_solved_by_its_own_method():
    kept, G, V = fitted({"a": EXACT, "b": DATAINF}), random(1, 6), random(2, 4)
    expected = {
        "a": V["a"] @ dense.exact_matrix(G["a"], 0.1),
        "b": V["b"] @ dense.datainf_matrix(G["b"], 2.0),
    }
    factors, forms = kept.times(V), kept.forms(V, {})
    assert list(factors) == list(forms) == ["a", "b"]
    for block, truth in expected.items():
        torch.testing.assert_close(factors[block], truth, rtol=1e-9, atol=1e-9)
        form = (truth * V[block]).sum(1)
        torch.testing.assert_close(forms[block], form, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "method", [DATAINF, EXACT, HESSIAN_FREE, SCALED_HESSIAN_FREE, Lissa(2000, 1e-9)]
)
def test_solving_over_kept_rows_draws_no_random_numbers(method):
    kept, before = fitted(dict.fromkeys(WIDTHS, method)), torch.random.get_rng_state()
    kept.times(random(2, 4))
    kept.forms(random(2, 4), {})
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_same_model_is_unchanged_whatever_object_it_is(model):
    kept = fitted(dict.fromkeys(WIDTHS, EXACT), model)
    twin = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    twin.load_state_dict(model.state_dict())
    kept.check_unchanged(model)
    kept.check_unchanged(twin)


def test_whatever_changed_in_a_model_came_or_went_is_named(model):
    kept = fitted(dict.fromkeys(WIDTHS, EXACT), model)
    with torch.no_grad():
        model[0].weight[2, 1] += 1e-6
    model[1].running_mean.numpy()[1] = 0.5
    model[1].register_buffer("mask", torch.ones(3))
    del model[0].bias
    told = r"\(4 tensors: 0\.weight, 0\.bias, 1\.running_mean, 1\.mask\).*Call fit again"
    with pytest.raises(ModelError, match=told):
        kept.check_unchanged(model)
