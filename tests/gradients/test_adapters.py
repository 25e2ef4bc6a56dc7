"""Rows of adapters of every kind; adapters that take no part in the forward pass are refused."""

import contextlib
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import CausalLM, DataInfInfluence, ModelError, SequenceClassification
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")

QUERY = {"target_modules": ["query"]}
LORA = {"r": 2, **QUERY}
PREFIX = "base_model.model.bert.encoder.layer.0.attention.self.query"


def lora(**kwargs):
    return peft.LoraConfig(**{**LORA, **kwargs})


KINDS = {
    "lora": lora(),
    "rank-stabilised lora": lora(use_rslora=True, target_modules=["query", "output.dense"]),
    "lora, biases of its layers": lora(bias="lora_only"),
    "lora, all biases": lora(bias="all"),
    "lora, biases of its own": lora(lora_bias=True),
    "lora and a head": lora(modules_to_save=["classifier"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=4, **QUERY),
    "prefixes": peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    "lora of embeddings": lora(target_modules=["word_embeddings"]),
    "lora and new tokens": lora(trainable_token_indices={"word_embeddings": [3, 4]}),
    "dora": lora(use_dora=True),
    "adalora": peft.AdaLoraConfig(init_r=2, target_r=1, total_step=10, **QUERY),
    "loha": peft.LoHaConfig(r=2, **QUERY),
    "lokr": peft.LoKrConfig(r=2, **QUERY),
    "ia3": peft.IA3Config(
        target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]
    ),
    "vera": peft.VeraConfig(r=2, **QUERY),
    "prompts": peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
}


def engine_of(model, objective=None, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return CaptureEngine(model, objective or SequenceClassification(), blocks, **kwargs)


def assert_right(engine, batch, loss=tiny.classification_loss, bound=1e-9):
    exact = dense.gradients(engine.model, loss, batch, list(engine.blocks.shapes))
    tiny.assert_rows_close(engine.blocks.flatten(engine.rows(batch)), exact.double(), bound)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind(kind):
    torch.manual_seed(0)
    config = KINDS[kind]
    model = tiny.with_adapters(tiny.bert(), config).double().eval()
    engine = engine_of(model, strict=True)
    for length, positions in ((4, 7), (1, 5), (3, 9)):
        assert_right(engine, tiny.labelled_texts(length, positions))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, pixel_values):
        h = torch.tanh(self.second(torch.tanh(self.first(pixel_values))))
        return SimpleNamespace(logits=self.out(h.mean((2, 3))))


@pytest.mark.parametrize(
    ("build", "targets"),
    [(Convolutions, ["first", "second"]), (tiny.resnet, ["convolution"])],
)
@pytest.mark.parametrize("dora", [False, True])
def test_convolutions(build, targets, dora):
    torch.manual_seed(0)
    model = tiny.lora(build(), targets, use_dora=dora).double().eval()
    engine = engine_of(model, strict=True)
    for length in (4, 1, 3):
        assert_right(engine, tiny.in_float64(tiny.images(length)))


def test_each_matrix_is_a_block():
    model = tiny.lora(tiny.bert(), ["query"], modules_to_save=["classifier"])
    assert Blocks.from_model(model, "module").names == (
        f"{PREFIX}.lora_A.default",
        f"{PREFIX}.lora_B.default",
        f"{PREFIX.replace('layer.0', 'layer.1')}.lora_A.default",
        f"{PREFIX.replace('layer.0', 'layer.1')}.lora_B.default",
        "base_model.model.classifier.modules_to_save.default",
    )


def test_a_frozen_head_takes_no_part():
    torch.manual_seed(0)
    model = tiny.lora(tiny.bert(), ["query"], modules_to_save=["classifier"]).double().eval()
    model.classifier.requires_grad_(False)
    engine = engine_of(model, strict=True)
    assert len(engine.blocks.names) == 4
    assert_right(engine, tiny.labelled_texts())


@pytest.mark.parametrize(
    ("model", "targets", "objective", "loss", "batch"),
    [
        (
            tiny.bert,
            ["query"],
            SequenceClassification(),
            tiny.classification_loss,
            tiny.labelled_texts,
        ),
        (tiny.llama, ["q_proj", "down_proj"], CausalLM(), tiny.answer_loss, tiny.answers),
        (tiny.qwen2, ["v_proj", "lm_head"], CausalLM(), tiny.answer_loss, tiny.answers),
    ],
)
def test_float32_adapters_of_a_bfloat16_model(model, targets, objective, loss, batch):
    torch.manual_seed(0)
    adapted = tiny.lora(model().to(torch.bfloat16), targets).eval()
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    engine, texts = engine_of(adapted, objective, strict=True), batch()
    rows = engine.blocks.flatten(engine.rows(texts))
    exact = dense.gradients(dense.in_float64(adapted), loss, texts, list(engine.blocks.shapes))
    assert ((rows - exact).norm(dim=1) <= 3e-2 * exact.norm(dim=1)).all()


# Quantised models


class Quantised(nn.Linear):
    """A frozen layer with a weight of 8 bits, multiplied in the precision of `compute`."""

    def __init__(self, linear, compute=None):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.compute = compute
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        codes = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        dtype = self.compute or x.dtype
        weight = self.weight.to(dtype) * self.scale.to(dtype)
        bias = self.bias if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), weight, bias).to(x.dtype)


def quantised(model, compute=None):
    """The model with all linear layers of its decoder quantised."""
    decoder = model.model
    for name in [n for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]:
        decoder.set_submodule(name, Quantised(decoder.get_submodule(name), compute))
    return model


def test_adapters_of_a_quantised_model():
    torch.manual_seed(0)
    model = tiny.lora(quantised(tiny.llama()), ["q_proj", "down_proj"]).double().eval()
    assert sum(p.dtype == torch.int8 for p in model.parameters()) == 14
    engine = engine_of(model, CausalLM(), strict=True)
    for length, positions in ((4, 7), (1, 5), (3, 9)):
        assert_right(engine, tiny.answers(length, positions), tiny.answer_loss)


def test_a_quantised_model_that_multiplies_in_half_precision_is_captured():
    """Premise: its parameters are of 8 bits and float32, and its arithmetic is coarser."""
    torch.manual_seed(0)
    model = quantised(tiny.llama(), torch.bfloat16)
    model = tiny.lora(model, ["q_proj", "v_proj", "down_proj"]).eval()
    assert {p.dtype for p in model.parameters()} == {torch.int8, torch.float32}
    engine = engine_of(model, CausalLM(), strict=True)
    for seed in range(4):
        torch.manual_seed(seed)
        assert_right(engine, tiny.answers(4, 7 + seed), tiny.answer_loss, bound=1e-2)


# Several adapters


def with_two(active):
    torch.manual_seed(0)
    model = tiny.lora(tiny.bert(), ["query", "value"])
    model.add_adapter("second", lora())
    model.base_model.set_adapter(active)
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * ("second" in name)
    return model.double().eval()


@pytest.mark.parametrize(
    ("active", "n_blocks"), [("default", 8), ("second", 4), (["default", "second"], 12)]
)
def test_the_active_adapters_are_differentiated(active, n_blocks):
    engine = engine_of(with_two(active), strict=True)
    assert len(engine.blocks.names) == n_blocks
    assert_right(engine, tiny.labelled_texts())


def test_an_adapter_that_is_no_longer_active_is_refused():
    model = with_two("default")
    engine, batch = engine_of(model), tiny.labelled_texts()
    before = engine.blocks.flatten(engine.rows(batch))
    model.set_adapter("second")
    with pytest.raises(ModelError, match=r"'default', but \['second'\] .*set_adapter\('default'\)"):
        engine.rows(batch)
    model.set_adapter("default")
    torch.testing.assert_close(engine.blocks.flatten(engine.rows(batch)), before, rtol=0, atol=0)


# Adapters that take no part


def merged(model):
    model.merge_adapter()
    return contextlib.nullcontext()


def disabled(model):
    model.disable_adapter_layers()
    return contextlib.nullcontext()


def inactive(model):
    """Premise: the parameters are trainable, so that nothing but zeros would tell."""
    model.add_adapter("second", lora())
    model.set_adapter("second")
    model.requires_grad_(True)
    return contextlib.nullcontext()


STATES = [
    (merged, r"merged into '.*query'.*unmerge_adapter\(\)"),
    (disabled, r"of '.*query' are disabled.*enable_adapter_layers\(\)"),
    (lambda model: model.disable_adapter(), r"are disabled.*disable_adapter\(\)"),
    (inactive, r"'default', but \['second'\] is active"),
]
STATE_NAMES = ["merged", "disabled", "disabled for a while", "not active"]


@pytest.mark.parametrize(("state", "message"), STATES, ids=STATE_NAMES)
@pytest.mark.parametrize("kind", [CaptureEngine, FunctionalEngine])
@pytest.mark.parametrize("head", [None, ["classifier"]])
def test_adapters_without_effect_are_refused(state, message, kind, head):
    """Also where a trained head has gradients, so that only the adapters' would be zeros."""
    model = tiny.lora(tiny.bert(), ["query"], modules_to_save=head).eval()
    blocks = Blocks.from_model(model, "module")
    with state(model), pytest.raises(ModelError, match=message):
        kind(model, SequenceClassification(), blocks).rows(tiny.labelled_texts())


@pytest.mark.parametrize(("state", "message"), STATES[:3], ids=STATE_NAMES[:3])
def test_an_influence_model_refuses_them_at_the_latest_when_fitted(state, message):
    model = tiny.lora(tiny.bert(), ["query"]).eval()
    with state(model), pytest.raises(ModelError, match=message):
        DataInfInfluence(model, SequenceClassification()).fit([tiny.labelled_texts()])


@pytest.mark.parametrize("undo", ["unmerge_adapter", "enable_adapter_layers"])
def test_the_remedy_that_is_named_works(undo):
    torch.manual_seed(0)
    model = tiny.lora(tiny.bert(), ["query"]).double().eval()
    engine, batch = engine_of(model), tiny.labelled_texts()
    before = engine.blocks.flatten(engine.rows(batch))
    {"unmerge_adapter": merged, "enable_adapter_layers": disabled}[undo](model)
    with pytest.raises(ModelError, match=undo):
        engine.rows(batch)
    getattr(model, undo)()
    tiny.assert_rows_close(engine.blocks.flatten(engine.rows(batch)), before)


def test_merged_adapters_that_are_not_differentiated_do_no_harm():
    torch.manual_seed(0)
    model = tiny.lora(tiny.bert(), ["query"]).double().eval()
    model.merge_adapter()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    assert_right(engine_of(model, strict=True), tiny.labelled_texts())


def test_dropout_of_adapters_is_refused_in_training_mode():
    model = tiny.lora(tiny.bert(), ["query"], lora_dropout=0.1).eval()
    model.base_model.model.bert.encoder.train()
    with pytest.raises(ModelError, match=r"dropout in training mode.*model.eval\(\)"):
        engine_of(model).rows(tiny.labelled_texts())
