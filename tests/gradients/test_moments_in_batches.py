"""Moments of layers do not depend on how samples are batched, in float32 too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import kronecker
import tiny
from pydvl_datainf import CausalLM, EkfacInfluence
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients.moments import LayerMoments, linear_blocks
from pydvl_datainf.objectives import OutputLoss

EPS = torch.finfo(torch.float32).eps
SIZES = {"all": (7,), "unequal": (3, 3, 1), "ones": (1,) * 7}


def close(found, exact, share=8 * EPS):
    """Up to rounding beside the largest entry of each moment."""
    for moment, expected in zip(found, exact, strict=True):
        expected = torch.as_tensor(expected)
        largest = float(expected.abs().max())
        assert largest > 0  # the premise
        torch.testing.assert_close(moment, expected, rtol=0, atol=share * largest)


def moments_of(model, objective, batches):
    found = LayerMoments(model, objective, linear_blocks(model, Blocks.from_model(model, "module")))
    for batch in batches:
        found.add(batch)
    return found.sums


def cut(batch, sizes):
    if isinstance(batch, dict):
        parts = {name: t.split(sizes) for name, t in batch.items()}
        return [{name: t[i] for name, t in parts.items()} for i in range(len(sizes))]
    return list(zip(*(t.split(sizes) for t in batch), strict=True))


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def texts(request):
    """Queries of the first token have a single key; answers are alone in having a loss."""
    torch.manual_seed(4)
    settings = {"attn_implementation": request.param, "initializer_range": 0.2}
    model = tiny.moved(tiny.lora(tiny.llama(**settings), ["q_proj", "v_proj"]).eval())
    batch = tiny.answers(7, 8)
    wide = dense.in_float64(model)
    exact = {
        path: kronecker.moments(wide, tiny.answer_loss, batch, wide.get_submodule(path))
        for path in (name.removesuffix(".weight") for name in tiny.names_of(model))
    }
    return model, batch, exact


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_of_texts_they_are_those_of_samples_alone_in_float64(texts, sizes, side):
    model, batch, exact = texts
    given = tiny.to_the_left(batch) if side == "left" else batch
    found = moments_of(model, CausalLM(), cut(given, SIZES[sizes]))
    assert found.keys() == exact.keys()
    for path, moments in exact.items():
        close(found[path], moments, 64 * EPS)


@pytest.mark.parametrize("labels", ["given", "drawn"])
def test_tokens_at_once_do_not_matter(texts, labels):
    model, batch, _ = texts
    given = {"labels": labels, "rows": "memory"}
    whole = EkfacInfluence(model, CausalLM(), 1.0, **given).layer_moments([batch])
    others = [
        EkfacInfluence(model, CausalLM(), 1.0, **given, **own).layer_moments([batch])
        for own in ({"max_tokens": 9}, {"batch_size": 2})
    ]
    for other in others:
        for path, moments in whole.items():
            close(other[path], moments, 64 * EPS)


def weighted(output, weight):
    return (output * weight).sum()


@pytest.mark.parametrize("sizes", [(3,), (2, 1), (1, 1, 1)], ids=str)
def test_small_gradients_count_beside_large_ones_of_other_samples(sizes):
    """Of a confident sample beside a wrong one; and rounding beside its own does not."""
    model = nn.Linear(2, 1)
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([1.0, 40 * EPS, 4 * EPS, 0])
    weights = torch.stack([own, 1e-12 * own, 0 * own])[:, :, None]
    found = moments_of(model, OutputLoss(weighted), cut((x, weights), sizes))[""]
    inputs = F.pad(x[:2, :2], (0, 1), value=1.0).double().flatten(0, 1)
    squares = float((weights[:2, :2].double() ** 2).sum())
    close(found, (inputs.T @ inputs, torch.tensor([[squares]]).double()))
    assert float(found[0][-1, -1]) == 4  # of the bias, whose input is 1: it counts the positions


class Picking(nn.Module):
    """Sends some tokens to a layer, as experts do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        tokens = x.flatten(0, 1)
        picked = tokens[:, 0] > 0
        output = tokens.new_zeros(len(tokens), 2)
        output[picked] = self.layer(tokens[picked])
        return output.view(*x.shape[:2], 2)


@pytest.mark.parametrize("sizes", SIZES)
def test_tokens_whose_samples_are_not_known_count_each_by_itself(sizes):
    torch.manual_seed(0)
    model, x = Picking(), torch.randn(7, 4, 3)
    x[:, 0, 0] = 1.0  # something of each
    weights = torch.randn(7, 4, 2) * torch.logspace(0, -12, 7)[:, None, None]
    assert (x[..., 0] > 0).sum() % 7  # the premise: in one batch they cannot be told
    found = moments_of(model, OutputLoss(weighted), cut((x, weights), SIZES[sizes]))["layer"]
    wide = dense.in_float64(model)
    batch = x.double(), weights.double()
    close(found, kronecker.moments(wide, weighted, batch, wide.layer, kronecker.with_one))


class Positioned(nn.Module):
    """Adds positions, the same for all samples, which the layer of the tokens projects."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("positions", torch.randn(1, 4, 3))

    def forward(self, x):
        return torch.tanh(self.layer(x) + self.layer(self.positions))


@pytest.mark.parametrize("sizes", SIZES)
def test_what_samples_share_counts_for_each_of_them(sizes):
    torch.manual_seed(0)
    model, batch = Positioned(), (torch.randn(7, 4, 3), torch.randn(7, 4, 2))
    found = moments_of(model, OutputLoss(weighted), cut(batch, SIZES[sizes]))["layer"]
    wide = dense.in_float64(model)
    exact = kronecker.moments(
        wide, weighted, tuple(t.double() for t in batch), wide.layer, kronecker.with_one
    )
    close(found, exact)
    assert float(found[0][-1, -1]) == 7 * 2 * 4  # the premise: both calls of each sample
