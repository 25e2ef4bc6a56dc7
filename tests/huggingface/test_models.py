"""Models from folders, their parameters, and the influence models that are built of them."""

import copy
import pickle
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import dense
import tiny
from pydvl_datainf import BlockError, CausalLM, ModelError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    select_parameters,
)
from pydvl_datainf.huggingface.records import Place
from tuned import sums, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def causal(tuned):
    return ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter))


@pytest.fixture
def classes(tuned):
    adapter = str(tuned.classes_adapter)
    return ModelFiles("sequence-classification", str(tuned.encoder), adapter)


def test_a_base_and_its_adapter(causal, tuned):
    model = causal.load()
    base = AutoModelForCausalLM.from_pretrained(tuned.causal)
    assert not model.training
    ids = torch.arange(2, 9).unsqueeze(0)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)
    with torch.no_grad():
        assert (model(ids).logits - base(ids).logits).abs().max() > 1e-3


def test_a_head_that_comes_with_the_adapter(classes):
    model = classes.load()
    assert classes.adapter_heads() == ("classifier",)
    selection = select_parameters(model)
    assert len(selection.names) == 8
    assert selection.left_out == ("classifier",)
    assert selection.heads == ()
    both = select_parameters(model, "adapters+heads")
    assert both.heads == ("classifier",)
    assert len(both.names) == 10
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(both.names)


def test_a_model_that_was_tuned_whole(tuned):
    files = ModelFiles("sequence-classification", str(tuned.classifier))
    model = files.load()
    assert files.adapter_heads() == ()
    assert len(select_parameters(model, "all").names) == len(list(model.parameters()))
    chosen = select_parameters(model, ["classifier.*", "*.layer.1.output.dense.weight"])
    assert set(chosen.names) == {
        "classifier.weight",
        "classifier.bias",
        "bert.encoder.layer.1.output.dense.weight",
    }
    with pytest.raises(BlockError, match="needs a peft adapter"):
        select_parameters(model, "adapters")
    with pytest.raises(BlockError, match=r"No parameter fits the pattern 'clasifier\.\*'"):
        select_parameters(model, ["clasifier.*"])
    with pytest.raises(BlockError, match="or a list of patterns, got 'heads'"):
        select_parameters(model, "heads")


def test_biases_that_an_adapter_trained(tuned, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tuned.classifier)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], bias="lora_only")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    files = ModelFiles("sequence-classification", str(tuned.classifier), str(tmp_path / "adapter"))
    assert files.adapter_heads()[-1] == "biases (lora_only)"
    loaded = files.load()
    left_out = select_parameters(loaded).left_out
    assert "bert.encoder.layer.0.attention.self.query.bias" in left_out
    everything = select_parameters(loaded, "all")
    assert not any("original_module" in name for name in everything.names)


def test_cuda_that_is_not_there_is_refused(causal):
    with pytest.raises(ModelError, match="no CUDA device"):
        InfluenceBuilder(causal, CausalLM(), device="cuda")()


def test_only_the_active_adapter_takes_part(tuned):
    model = AutoModelForCausalLM.from_pretrained(tuned.causal)
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    model = get_peft_model(model, config, adapter_name="first")
    model.add_adapter("first2", config)
    model.set_adapter("first")
    names = select_parameters(model).names
    assert len(names) == 2 * 3
    assert all(".first" in name and ".first2" not in name for name in names)


def test_adapters_that_transformers_added(tuned):
    model = AutoModelForCausalLM.from_pretrained(tuned.causal)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(select_parameters(model).names) == 2 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes(causal, dtype):
    model = replace(causal, dtype=dtype).load()
    assert model.base_model.model.lm_head.weight.dtype == getattr(torch, dtype)


def test_attention(causal):
    assert replace(causal, attention="eager").load().config._attn_implementation == "eager"


def test_names_of_labels(tuned, classes):
    named = replace(classes, labels=("no", "yes"))
    assert named.config().label2id == {"no": 0, "yes": 1}
    assert named.load().config.id2label == {0: "no", 1: "yes"}
    own = ModelFiles("sequence-classification", str(tuned.classifier), labels=("bad", "good"))
    assert own.config().label2id == {"bad": 0, "good": 1}
    with pytest.raises(ModelError, match="calls its outputs bad, good, in this order"):
        replace(own, labels=("good", "bad")).load()


def test_the_padding_of_a_classifier_without_one_is_the_tokenizers(tuned, tmp_path):
    shutil.copytree(tuned.causal, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 0', '"pad_token_id": null'))
    untuned = ModelFiles("sequence-classification", str(tmp_path / "model"))
    assert untuned.config().pad_token_id is None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert untuned.load().config.pad_token_id == 0
    assert untuned.padding() == 0
    config.write_text(config.read_text().replace('"pad_token_id": null', '"pad_token_id": 7'))
    assert untuned.padding() == 7
    config.write_text(config.read_text().replace('"pad_token_id": 7', '"pad_token_id": -1'))
    assert untuned.padding() == 0


# Refusals


def test_a_random_head_is_refused(tuned):
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias, classifier\.weight"):
        ModelFiles("sequence-classification", str(tuned.encoder)).load()


def test_an_adapter_in_place_of_a_model_is_refused(tuned):
    with pytest.raises(ModelError, match="is an adapter"):
        ModelFiles("causal-lm", str(tuned.causal_adapter)).load()


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_what_is_not_there_is_named(causal, what):
    files = replace(causal, **{what: "/nowhere/at/all"})
    with pytest.raises(ModelError, match=r"There is no folder /nowhere/at/all\.$"):
        files.load()
    with pytest.raises(ModelError, match="Could not load"):
        replace(causal, **{what: "nobody/nothing"}).load()


def test_an_adapter_that_is_not_whole_is_refused(causal, tmp_path):
    shutil.copytree(causal.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"not whole.*lora_B"):
        replace(causal, adapter=str(tmp_path / "adapter")).load()


def test_an_adapter_of_another_model_is_refused(tuned):
    labels = ("one", "two", "three")
    files = ModelFiles(
        "sequence-classification", str(tuned.encoder), str(tuned.classes_adapter), labels
    )
    with pytest.raises(ModelError, match="another number of outputs, give the labels"):
        files.load()


def test_code_of_a_model_is_not_run(tuned, tmp_path):
    shutil.copytree(tuned.causal, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    custom = '{"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own",'
    config.write_text(custom + config.read_text().lstrip()[1:].replace('"llama"', '"own"'))
    (tmp_path / "model" / "own.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        ModelFiles("causal-lm", str(tmp_path / "model")).load()


# Influences


def loss(model, batch):
    """Cross entropy of the answer of one sample, by transformers itself."""
    return model(**batch).loss


def batch_of(count):
    encoder = AnswerEncoder(tokenizer(), 64)
    records = [(Place("x", "line", i), record) for i, record in enumerate(sums(count))]
    (batch,) = TokenSamples([encoder.encode(record) for record in records], 0).to_loader(count)
    return batch


def test_a_builder_computes_what_the_formula_says(causal):
    builder = InfluenceBuilder(replace(causal, dtype="float64"), CausalLM(), max_tokens=40)
    influence = builder()
    train, test = batch_of(7), batch_of(2)
    scores = influence.fit([train]).training_influences(test)
    total = 0
    for block, parameters in influence.parameter_dict.items():
        model = copy.deepcopy(influence.model).double()
        g, v = (dense.gradients(model, loss, b, list(parameters)) for b in (train, test))
        total = total + v @ dense.datainf_matrix(g, dense.automatic_damping(g)) @ g.T
        assert "lora_" in block
    torch.testing.assert_close(
        scores.double(), total.double(), rtol=0, atol=1e-5 * float(total.abs().max())
    )


def test_builders_travel_and_build_the_same_model(causal):
    builder = InfluenceBuilder(
        causal, CausalLM(), parameters=("*.layers.1.*lora_A*",), regularization=0.1
    )
    twin = pickle.loads(pickle.dumps(builder))
    first, second = builder(), twin()
    assert len(first.block_names) == 2
    assert first.fixed_damping == dict.fromkeys(first.block_names, 0.1)
    batch = batch_of(3)
    assert torch.equal(first.loss_gradients(batch), second.loss_gradients(batch))


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
PROMPTS = {
    "prompts": peft.PromptTuningConfig(**VIRTUAL),
    "prefixes": peft.PrefixTuningConfig(**VIRTUAL),
    "projected prefixes": peft.PrefixTuningConfig(
        **VIRTUAL, prefix_projection=True, encoder_hidden_size=8
    ),
    "encoded prompts": peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=8),
}


@pytest.mark.parametrize("config", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.filterwarnings("ignore:One backward pass per sample")
def test_tuned_prompts_are_loaded_and_take_part(tmp_path, config):
    torch.manual_seed(6)
    base, batch = tiny.llama(), tiny.answers(4, 7)
    base.save_pretrained(tmp_path / "model")
    made = peft.get_peft_model(base, copy.copy(config)).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) * parameter.requires_grad
    made.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        told = made(**batch).logits
    files = ModelFiles("causal-lm", str(tmp_path / "model"), str(tmp_path / "adapter"))
    influence = InfluenceBuilder(replace(files, dtype="float64"), CausalLM())()
    with torch.no_grad():
        torch.testing.assert_close(influence.model(**batch).logits.float(), told)
    (block,) = influence.parameter_dict.values()
    assert list(block) == ["prompt_encoder.default.embedding.weight"]
    wide = dense.in_float64(influence.model)
    exact = dense.gradients(wide, prompted_loss, batch, list(block))
    assert exact.abs().max() > 0
    tiny.assert_rows_close(influence.loss_gradients(batch).double(), exact, 1e-5)


def prompted_loss(model, batch):
    """Of the answer of one sample; tuned prompts stand before the first token."""
    labels = batch["labels"][0]
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    log_p = logits[0, -len(labels) :].log_softmax(-1)
    places = [t for t in range(1, len(labels)) if labels[t] != -100]
    return -torch.stack([log_p[t - 1, labels[t]] for t in places]).mean()
