"""Second moments of layers' inputs and output gradients, against loops over samples and tokens."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import kronecker
import tiny
from pydvl_datainf import CausalLM
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.gradients.moments import LayerMoments, linear_blocks, positions
from pydvl_datainf.objectives import OutputLoss
from stored_transposed import transposed
from zoo import CASES, Flat, Tied, TiedBias


def moments_of(model, objective, batches, structure="module"):
    """What batches add up to, for each block."""
    layers = linear_blocks(model, Blocks.from_model(model, structure))
    found = LayerMoments(model, objective, layers)
    for batch in batches:
        found.add(batch)
    return found.sums


def assert_same(found, exact):
    for moment, expected in zip(found, exact, strict=True):
        expected = torch.from_numpy(expected)
        assert moment.dtype == torch.float64
        largest = float(expected.abs().max())
        assert largest > 0  # the premise
        torch.testing.assert_close(moment, expected, rtol=1e-9, atol=1e-9 * largest)


def numbers(length, *shape, targets):
    torch.manual_seed(length)
    return torch.randn(length, *shape).double(), torch.randn(length, *targets).double()


def cut(batch, *sizes):
    return list(zip(*(t.split(sizes) for t in batch), strict=True))


def exact(model, batch, layer, **settings):
    return kronecker.moments(model, F.mse_loss, batch, layer, **settings)


with_bias = {"inputs": kronecker.with_one}
SUM = OutputLoss(F.mse_loss)


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1,) * 7], ids=str)
def test_of_linear_layers_with_and_without_bias(sizes):
    torch.manual_seed(0)
    model = Flat(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4, bias=False)).double()
    batch = numbers(7, 6, 3, targets=(24,))
    found = moments_of(model, SUM, cut(batch, *sizes))
    first, _, last = model.layers
    assert_same(found["layers.0"], exact(model, batch, first, **with_bias))
    assert_same(found["layers.2"], exact(model, batch, last))
    assert [tuple(m.shape) for m in found["layers.0"]] == [(4, 4), (5, 5)]


def test_parameter_by_parameter_a_bias_has_an_input_of_one():
    torch.manual_seed(0)
    model = Flat(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    batch = numbers(7, 2, 3, targets=(8,))
    found = moments_of(model, SUM, [batch], "parameter_wise")
    assert list(found) == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
    for i in (0, 2):
        layer = model.layers[i]
        assert_same(found[f"layers.{i}.weight"], exact(model, batch, layer))
        only_one = exact(model, batch, layer, inputs=lambda layer, x: x[:1] * 0 + 1)
        assert_same(found[f"layers.{i}.bias"], only_one)


def test_positions_without_an_output_gradient_do_not_count():
    """Premise: the inputs there are not zero, so that they would be seen in the sum."""
    model = nn.Linear(3, 2).double()
    x, y = numbers(4, 5, 3, targets=(5, 2))

    def masked(output, y):
        return (F.mse_loss(output, y, reduction="none") * (y != 0)).sum()

    lengths = torch.tensor([5, 3, 1, 4])
    y[torch.arange(5) >= lengths[:, None]] = 0
    found = moments_of(model, OutputLoss(masked), [(x, y)])[""]
    A = sum(
        torch.outer(t, t) for i in range(4) for t in F.pad(x[i, : lengths[i]], (0, 1), value=1.0)
    )
    torch.testing.assert_close(found[0], A, rtol=1e-9, atol=1e-9)
    assert float(found[0][-1, -1]) == 13  # the 1 of the bias, squared, over 13 positions
    shorter = moments_of(model, OutputLoss(masked), [(x[1:], y[1:]), (x[:1], y[:1])])[""]
    torch.testing.assert_close(shorter, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_gradients_that_are_rounding_do_not_count(dtype):
    """Beside others of the sample. The input of a bias, which is 1, counts the positions."""
    size = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    model = nn.Linear(1, 1).to(dtype)
    weights = torch.tensor([[[1.0], [40 * size], [4 * size], [0]]])
    x = torch.ones(1, 4, 1, dtype=dtype)

    def loss(output, weight):
        return (output * weight).sum()

    batch = x, weights.to(dtype)
    found = moments_of(model, OutputLoss(loss), [batch], "parameter_wise")
    assert float(found["bias"][0]) == 2


@pytest.mark.parametrize("bias", [True, False])
def test_of_convolutions_over_patches(bias):
    torch.manual_seed(0)
    settings = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": bias}
    model = Flat(nn.Conv2d(2, 3, (3, 2), **settings), nn.Tanh(), nn.Conv2d(3, 2, 2)).double()
    x = torch.randn(5, 2, 6, 5).double()
    batch = x, torch.randn_like(model(x))
    found = moments_of(model, SUM, cut(batch, 2, 3))
    conv = partial(exact, model, batch, places=kronecker.patches)
    assert_same(found["layers.0"], conv(model.layers[0], **(with_bias if bias else {})))
    assert_same(found["layers.2"], conv(model.layers[2], **with_bias))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 9)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), (2, 4, 4)),
        (nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 4, 3, 4)),
    ],
    ids=["1d", "2d circular", "3d"],
)
def test_patches_times_output_gradients_are_the_weights_gradient(conv, shape):
    """For one sample, Σ_t g_t x_tᵀ: so the patches are right for every kind of convolution."""
    conv = conv.double()
    x = torch.randn(1, *shape).double()
    y = conv(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, conv.weight, g)
    patches, gradients = positions(conv, x, g)
    torch.testing.assert_close((gradients.T @ patches).reshape(conv.weight.shape), expected)


def test_a_layer_that_is_called_twice_adds_up_its_calls():
    torch.manual_seed(0)
    model = Tied().double()
    batch = torch.randint(0, 6, (5, 4)), torch.randn(5, 6).double()
    found = moments_of(model, SUM, cut(batch, 2, 3))
    assert list(found) == ["hidden"]  # the output layer's weight is that of an embedding
    assert_same(found["hidden"], exact(model, batch, model.hidden, **with_bias))
    calls = kronecker.calls_of(model, F.mse_loss, tuple(t[:1] for t in batch), model.hidden)
    assert len(calls) == 2  # the premise


def test_a_bias_is_not_there_in_calls_of_a_tied_layer_without_it():
    """The input of the bias is 0 in them."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = Flat(first, nn.Tanh(), second).double()
    batch = numbers(5, 3, targets=(3,))
    A, S = moments_of(model, SUM, [batch])["layers.0"]
    own = exact(model, batch, first, **with_bias)
    tied = exact(model, batch, second, inputs=lambda layer, x: [*x, 0.0])
    assert_same((A, S), [a + b for a, b in zip(own, tied, strict=True)])


def test_of_a_weight_that_is_stored_transposed_both_are_swapped():
    torch.manual_seed(0)
    model = transposed(Flat(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))).double()
    batch = numbers(7, 2, 3, targets=(8,))
    found = moments_of(model, SUM, cut(batch, 3, 4))
    layers = linear_blocks(model, Blocks.from_model(model, "module"))
    for i, inputs, outputs in ((0, 3, 5), (2, 5, 4)):
        A, S = found[f"layers.{i}"]
        assert_same((S, A), exact(model, batch, model.layers[i], **with_bias))
        assert layers[f"layers.{i}"].shape == (inputs + 1, outputs)
    alone = moments_of(model, SUM, [batch], "parameter_wise")
    assert_same(alone["layers.0.weight"][::-1], exact(model, batch, model.layers[0]))
    only_one = exact(model, batch, model.layers[0], inputs=lambda layer, x: [1.0])
    assert_same(alone["layers.0.bias"], only_one)


def test_a_weight_that_is_stored_both_ways_is_no_linear_layer():
    first, second = nn.Linear(3, 3), transposed(nn.Linear(3, 3))
    second.weight = first.weight
    model = nn.Sequential(first, second)
    blocks = Blocks.from_model(model, {"weight": ["0.weight"], "bias": ["1.bias"]})
    assert set(linear_blocks(model, blocks)) == {"bias"}


def test_blocks_that_are_no_linear_layer_have_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    named = {"one": ["2.weight"], "several": ["1.bias", "2.bias"], "norm": ["1.weight"]}
    assert set(linear_blocks(model, Blocks.from_model(model, named))) == {"one"}
    assert set(linear_blocks(model, Blocks.from_model(model, "module"))) == {"2"}
    assert linear_blocks(model, Blocks.from_model(model, "full")) == {}
    tied = TiedBias()  # whose container has the bias, too
    assert set(linear_blocks(tied, Blocks.from_model(tied, "module"))) == {"inner", "decoder"}
    assert linear_blocks(tied, Blocks.from_model(tied, {"all": ["decoder.weight", "bias"]})) == {}
    own = CASES["subclass"].model()  # with a forward of its own
    assert linear_blocks(own, Blocks.from_model(own, "module")) == {}


def test_layers_that_are_not_called_have_none():
    """Attention uses the weight of its output layer, but not the layer."""
    torch.manual_seed(0)
    case = CASES["attention"]
    model = case.model().double()
    batch = tuple(t.double() for t in case.batch(4))
    layers = linear_blocks(model, Blocks.from_model(model, "module"))
    assert set(layers) == {"attention.out_proj", "out"}
    assert set(moments_of(model, SUM, [batch])) == {"out"}


def test_frozen_parts_take_no_part():
    torch.manual_seed(0)
    model = Flat(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    model.layers[0].requires_grad_(False)
    model.layers[2].weight.requires_grad_(False)
    batch = numbers(4, 3, targets=(4,))
    found = moments_of(model, SUM, [batch])
    assert {block: len(A) for block, (A, _) in found.items()} == {"layers.2": 1}


def test_of_lora_over_padded_texts():
    torch.manual_seed(4)
    model = tiny.moved(tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval())
    batch = tiny.answers(5, 8)
    assert (batch["attention_mask"] == 0).any()  # the premise
    found = moments_of(model, CausalLM(), [{k: v[:3] for k, v in batch.items()}])
    more = moments_of(model, CausalLM(), [{k: v[3:] for k, v in batch.items()}])
    assert len(found) == 8
    for path in found:
        A, S = (a + b for a, b in zip(found[path], more[path], strict=True))
        layer = model.get_submodule(path)
        assert_same((A, S), kronecker.moments(model, tiny.answer_loss, batch, layer))


def test_the_model_is_left_as_it_was_even_after_an_error():
    model = Flat(nn.Linear(3, 2)).double()
    layers = linear_blocks(model, Blocks.from_model(model, "module"))
    moments = LayerMoments(model, OutputLoss(lambda output, y: output.detach().sum()), layers)
    batch = numbers(4, 3, targets=(2,))
    before = torch.get_rng_state()
    with pytest.raises(ObjectiveError, match="do not depend on the selected parameters"):
        moments.add(batch)
    moments_of(model, SUM, [batch])
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert moments.sums == {}
    assert torch.equal(before, torch.get_rng_state())


def test_layers_that_are_checkpointed_count_once():
    class Checkpointed(Flat):
        def forward(self, x):
            return checkpoint(self.layers, x, use_reentrant=False).flatten(1)

    torch.manual_seed(0)
    model = Checkpointed(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    batch = numbers(4, 2, 3, targets=(8,))
    found = moments_of(model, SUM, [batch])
    plain = Flat(*model.layers)
    for i in (0, 2):
        expected = exact(plain, batch, plain.layers[i], **with_bias)
        assert_same(found[f"layers.{i}"], expected)
