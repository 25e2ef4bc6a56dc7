"""LoRA over a base that bitsandbytes quantised, against one backward pass a sample of the same."""

import copy
import pickle

import cloudpickle
import pytest
import torch
from torch import nn

import dense
import tiny
from pydvl_datainf import CausalLM, DataInfInfluence, ModelError
from pydvl_datainf.fingerprint import differences, fingerprint
from pydvl_datainf.objectives import reference_log_probabilities

bnb = pytest.importorskip("bitsandbytes", reason="needs the extra [quantized]")

PLAIN = {"quant_type": "nf4", "compress_statistics": False}
NESTED = {"quant_type": "nf4", "compress_statistics": True}
KINDS = {
    "4bit, float32": (bnb.nn.Linear4bit, {"compute_dtype": torch.float32, **PLAIN}),
    "4bit twice": (bnb.nn.Linear4bit, {"compute_dtype": torch.float32, **NESTED}),
    "4bit, bfloat16": (bnb.nn.Linear4bit, {"compute_dtype": torch.bfloat16, **NESTED}),
    "4bit, float16": (bnb.nn.Linear4bit, {"compute_dtype": torch.float16, **NESTED}),
    "8bit": (bnb.nn.Linear8bitLt, {"has_fp16_weights": False}),
    "8bit, outliers": (bnb.nn.Linear8bitLt, {"has_fp16_weights": False, "threshold": 1.0}),
}
BOUNDS = {"4bit, float32": 1e-5, "4bit twice": 1e-5, "8bit": 1e-3}


def quantised(kind):
    """A decoder with linear layers of that kind, and LoRA in float32."""
    torch.manual_seed(0)
    model = tiny.llama()
    layer, settings = KINDS[kind]
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, nn.Linear):
            other = layer(linear.in_features, linear.out_features, bias=False, **settings)
            other.load_state_dict({"weight": linear.weight.data})
            model.model.set_submodule(name, other.to("cpu"))
    return tiny.lora(model, ["q_proj", "v_proj", "down_proj"]).eval()


def packing(model):
    """The layers that bitsandbytes may pack, on a CPU that gains by it."""
    return [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]


def exact_rows(model, batch, names):
    """One backward pass for each sample, of a copy that keeps its weights as they are."""
    model = copy.deepcopy(model)
    for layer in packing(model):
        layer.support_avx512bf16_for_cpu = False
    return dense.gradients(model, tiny.answer_loss, batch, names).double()


def rows(model, batch):
    return DataInfInfluence(model, CausalLM()).loss_gradients(batch)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return tiny.answers(5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_influences(kind, batch):
    model, bound = quantised(kind), BOUNDS.get(kind, 1e-2)
    assert sum(p.dtype in (torch.uint8, torch.int8) for p in model.parameters()) == 14
    influence = DataInfInfluence(model, CausalLM(), 0.01).fit([batch])
    exact = exact_rows(model, batch, tiny.names_of(model))
    tiny.assert_rows_close(influence.loss_gradients(batch), exact, bound)
    torch.manual_seed(0)
    plain = tiny.lora(tiny.llama(), ["q_proj", "v_proj", "down_proj"]).eval()
    with pytest.raises(AssertionError, match="not close"):  # the negative control
        tiny.assert_rows_close(rows(plain, batch), exact, bound)
    sides = {b: exact_rows(model, batch, names) for b, names in influence.blocks.members.items()}
    truth = dense.influences(sides, sides, sides, dict.fromkeys(sides, 0.01))
    size = truth.diagonal().sqrt()
    scale = size[:, None] * size
    scores = influence.training_influences(batch).double()
    torch.testing.assert_close(scores / scale, truth / scale, rtol=0, atol=2 * bound)


@pytest.mark.parametrize("kind", ["4bit twice", "8bit"])
def test_the_fingerprint_holds_what_stands_beside_the_weights(kind, batch):
    model = quantised(kind)
    first = fingerprint(model)
    rows(model, batch)
    assert fingerprint(model) == first  # wherever the first pass puts it
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    state = layer.weight.quant_state if kind == "4bit twice" else layer.state
    scales = state.state2.absmax if kind == "4bit twice" else state.SCB
    scales *= 2
    (changed,) = differences(first, fingerprint(model))
    assert changed.startswith("base_model.model.model.layers.1.mlp.up_proj.")


@pytest.mark.parametrize("kind", ["4bit twice", "8bit"])
def test_copies_have_the_same_rows(kind, batch):
    model = quantised(kind)
    exact = rows(model, batch)
    for other in (copy.deepcopy(model), pickle.loads(cloudpickle.dumps(model))):
        assert torch.equal(rows(other, batch), exact)
        assert fingerprint(other) == fingerprint(model)


@pytest.mark.parametrize("kind", ["4bit twice", "8bit"])
def test_vmap_cannot_enter_them(kind, batch):
    influence = DataInfInfluence(quantised(kind), CausalLM(), gradients="functional")
    with pytest.raises(ModelError, match='Use gradients="auto"'):
        influence.loss_gradients(batch)


def test_weights_are_not_packed_by_passes_without_gradients(batch):
    model = quantised("4bit twice")
    exact, layers, before = rows(model, batch), packing(model), fingerprint(model)
    influence = DataInfInfluence(model, CausalLM(), curvature="gauss-newton").fit([batch])
    influence.losses([batch])
    pairs = {f"{side}_{name}": t for side in ("chosen", "rejected") for name, t in batch.items()}
    reference_log_probabilities(model, [pairs])
    assert torch.equal(rows(model, batch), exact)
    assert fingerprint(model) == before
    assert packing(model) == layers


def test_packed_weights_are_refused(batch):
    model = quantised("4bit twice")
    influence = DataInfInfluence(model, CausalLM())
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    layer.weight.quant_state.packing_format_for_cpu = True  # as bitsandbytes marks them
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj' was packed .* Load the model"):
        influence.fit([batch])
