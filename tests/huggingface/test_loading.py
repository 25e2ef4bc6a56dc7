"""What is loaded of a folder: whole safetensors, and never code; all else is refused by name."""

import json
import os
import pickle
import shutil
import warnings
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pydvl_datainf import ModelError
from pydvl_datainf.cli import main
from pydvl_datainf.huggingface import DiffusionFiles, ModelFiles
from tuned import sums, write_lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def files(tuned, tmp_path):
    shutil.copytree(tuned.causal, tmp_path / "model")
    shutil.copytree(tuned.causal_adapter, tmp_path / "adapter")
    return ModelFiles("causal-lm", str(tmp_path / "model"), str(tmp_path / "adapter"))


WEIGHTS = {
    "model": ("model/model.safetensors", "model/pytorch_model.bin"),
    "adapter": ("adapter/adapter_model.safetensors", "adapter/adapter_model.bin"),
}


def pickled(folder, which):
    """Puts a pickle in the place of safetensors."""
    safe, unsafe = (folder / name for name in WEIGHTS[which])
    torch.save(load_file(safe), unsafe)
    safe.unlink()
    return unsafe


# Pickles


@pytest.mark.parametrize("which", WEIGHTS)
def test_pickles_are_loaded_only_where_they_are_trusted(files, tmp_path, which):
    expected = files.load().state_dict()
    unsafe = pickled(tmp_path, which)
    with pytest.raises(ModelError, match=rf"{unsafe.name} is a pickle.*say trust_pickle: true"):
        files.load()
    found = replace(files, trust_pickle=True).load().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("which", WEIGHTS)
@pytest.mark.parametrize("trusted", [False, True])
def test_code_in_a_pickle_is_never_run(files, tmp_path, which, trusted):
    unsafe = pickled(tmp_path, which)
    torch.save({"weight": Code(tmp_path / "code was run")}, unsafe)
    with pytest.raises(ModelError, match="pickle") as error:
        replace(files, trust_pickle=trusted).load()
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "code was run").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "code was run")))  # the premise
    assert (tmp_path / "code was run").exists()


def test_a_pickle_that_a_configuration_names_is_refused(files, tmp_path):
    changed(tmp_path / "model/config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ModelError, match=r"config.json of .* names the weights adapter_model.bin"):
        files.load()


def test_safetensors_come_first(files, tmp_path):
    torch.save({"weight": Code(tmp_path / "code was run")}, tmp_path / WEIGHTS["model"][1])
    files.load()
    replace(files, trust_pickle=True).load()
    assert not (tmp_path / "code was run").exists()


def test_a_pickle_on_the_hub_is_loaded_only_where_it_is_trusted(files, tmp_path, monkeypatch):
    pickled(tmp_path, "adapter")
    on_hub = tmp_path / "hub" / "models--some--adapter"
    (on_hub / "refs").mkdir(parents=True)
    (on_hub / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tmp_path / "adapter", on_hub / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    named = replace(files, adapter="some/adapter")
    with pytest.raises(ModelError, match="Could not load safetensors of the adapter some/adapter"):
        named.load()
    assert replace(named, trust_pickle=True).load().peft_config["default"].r == 2  # the premise


# Damage


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def sharded(folder, change=dict, missing=False):
    """Splits the model's weights into two files."""
    whole = folder / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    names = ["model-1.safetensors", "model-2.safetensors"]
    places = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: value for key, value in weights.items() if places[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(change(index)))
    return folder / names[1]


def test_weights_in_several_files(files, tmp_path):
    expected = files.load().state_dict()
    sharded(tmp_path / "model")
    found = files.load().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named(files, tmp_path):
    sharded(tmp_path / "model").unlink()
    with pytest.raises(ModelError, match=r"There is no file .*model-2.safetensors. Copy or"):
        files.check()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "must hold an object, .* and holds a list"),
        ({}, "weight_map names no file"),
        ({"weight_map": ["a"]}, "weight_map names no file"),
        ({"weight_map": {"a": 3}}, "weight_map names no file"),
        ({"weight_map": {"a": "b.bin"}}, r"names b.bin, a pickle"),
        ({"weight_map": {"a": "../b.safetensors"}}, "'../b.safetensors', which is not beside it"),
    ],
)
def test_a_damaged_index_is_named(files, tmp_path, index, message):
    sharded(tmp_path / "model", lambda right: index)
    with pytest.raises(ModelError, match=rf"model.safetensors.index.json.*{message}"):
        files.check()


@pytest.mark.parametrize("which", WEIGHTS)
@pytest.mark.parametrize("content", ["empty", "half", "other"])
def test_damaged_weights_are_named(files, tmp_path, which, content):
    path = tmp_path / WEIGHTS[which][0]
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "other": b"?" * 99}[content])
    for call in (files.check, files.load):
        with pytest.raises(ModelError, match=rf"{path.name} is no whole safetensors file.*again"):
            call()


@pytest.mark.parametrize("which", WEIGHTS)
def test_missing_weights_are_named(files, tmp_path, which):
    path = tmp_path / WEIGHTS[which][0]
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelError, match=rf"holds no weights: there is no {path.name}"):
        files.load()


SETTINGS = [
    "model/config.json",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "model/generation_config.json",
    "adapter/adapter_config.json",
]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds a list"),
        (b'"x"', "holds a str"),
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_damaged_settings_are_named(files, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} .*{message}"):
        files.check()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("model/config.json", {"model_type": "nothing"}, "config.json there"),
        ("model/config.json", {"model_type": None}, "config.json there"),
        ("model/config.json", {"hidden_size": "wide"}, "config.json there"),
        ("model/config.json", {"hidden_act": "nothing"}, "KeyError: 'nothing'. Check config.json"),
        ("adapter/adapter_config.json", {"peft_type": "nothing"}, "adapter_config.json there"),
        ("adapter/adapter_config.json", {"peft_type": 3}, "adapter_config.json there"),
        ("adapter/adapter_config.json", {"r": "two"}, "TypeError.*Check adapter_config.json"),
        ("adapter/adapter_config.json", {"target_modules": ["no"]}, "not found in the base model"),
    ],
)
def test_settings_that_do_not_fit_are_named(files, tmp_path, name, values, message):
    changed(tmp_path / name, **values)
    with pytest.raises(ModelError, match=rf"Could not load .*{message}"):
        files.load()


@pytest.mark.parametrize(
    "values", [{"model_max_length": "long"}, {"eos_token": {"a": 1}}, {"auto_map": 3}]
)
def test_tokenizers_that_do_not_work_are_named(files, tmp_path, values):
    changed(tmp_path / "model/tokenizer_config.json", **values)
    with pytest.raises(ModelError, match=r"the tokenizer of .* Check tokenizer.json and"):
        files.tokenizer()


def test_modules_to_save_that_are_no_names_are_named(files, tmp_path):
    changed(tmp_path / "adapter/adapter_config.json", modules_to_save=3)
    with pytest.raises(ModelError, match=r"TypeError.*Check adapter_config.json there"):
        files.adapter_heads()


@pytest.mark.parametrize(
    "name", ["model/config.json", "adapter/adapter_model.safetensors", "model/tokenizer.json"]
)
def test_pipes_are_not_read(files, tmp_path, name):
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=rf"{name} is a pipe, a socket or a device"):
        files.check()


def test_files_in_place_of_folders_are_refused(files, tmp_path):
    with pytest.raises(ModelError, match=r"config.json is a file. Name the folder"):
        replace(files, model=str(tmp_path / "model/config.json")).load()


# Jobs


def damaged(folder):
    path = folder / WEIGHTS["model"][0]
    path.write_bytes(path.read_bytes()[:-1])


def unfit(folder):
    changed(folder / "model/config.json", hidden_act="nothing")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged, "no whole safetensors file"),
        (unfit, "KeyError: 'nothing'"),  # which only loading tells
        (lambda folder: pickled(folder, "model"), "trust_pickle: true"),
        (lambda folder: pickled(folder, "adapter"), "trust_pickle: true"),
    ],
)
def test_a_job_on_damaged_files_is_not_valid_and_begins_nothing(files, tmp_path, damage, message):
    data = str(write_lines(tmp_path / "data.jsonl", sums(2)))
    job = {"task": files.task, "model": files.model, "adapter": files.adapter, "train": data}
    job |= {"test": data, "out": "out.zarr", "device": "cpu"}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    damage(tmp_path)
    result = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--no-progress"])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out.zarr").exists()


# Diffusion models

BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"
INDEX = "pipeline/model_index.json"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=4, in_channels=1, out_channels=1, **kinds, **BLOCKS)
    folder = tmp_path_factory.mktemp("diffusion")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "pipeline")
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,), latent_channels=1)
    vae.save_pretrained(folder / "pipeline" / "vae")
    changed(folder / INDEX, vae=["diffusers", "AutoencoderKL"])
    return folder


@pytest.fixture
def diffusion(pipeline, tmp_path):
    shutil.copytree(pipeline / "pipeline", tmp_path / "pipeline")
    return DiffusionFiles(str(tmp_path / "pipeline"))


def test_pickles_of_a_pipeline_are_loaded_only_where_they_are_trusted(diffusion, tmp_path):
    expected = diffusion.load().state_dict()
    assert diffusion.part("vae") is not None
    for part, call in (("unet", diffusion.load), ("vae", lambda: diffusion.part("vae"))):
        safe = tmp_path / "pipeline" / part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(safe), safe.with_suffix(".bin"))
        safe.unlink()
        with pytest.raises(ModelError, match=rf"{part}/diffusion_pytorch_model.bin is a pickle"):
            call()
    trusting = replace(diffusion, trust_pickle=True)
    found = trusting.load().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert trusting.part("vae") is not None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (UNET, b"", "no whole safetensors file"),
        (INDEX, b"[]", "holds a list"),
        (INDEX, b"\xff", "cannot be read as JSON"),
        ("pipeline/unet/config.json", b"[]", "holds a list"),
        ("pipeline/unet/config.json", b"{}", "does not say in_channels"),
        ("pipeline/scheduler/scheduler_config.json", b'"x"', "holds a str"),
        ("pipeline/vae/config.json", b"", "cannot be read as JSON"),
    ],
)
def test_damaged_files_of_a_pipeline_are_named(diffusion, tmp_path, name, content, message):
    def load_all():
        diffusion.check()
        return diffusion.config(), diffusion.scheduler(), diffusion.part("vae")

    load_all()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} .*{message}"):
        load_all()


@pytest.mark.parametrize("told", [["antigravity", "geohash"], ["diffusers", "no"], "x", [[], 3]])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pipeline_does_not_choose_what_is_imported(diffusion, tmp_path, told, part):
    changed(tmp_path / INDEX, **{part: told})
    with pytest.raises(ModelError, match=rf"{INDEX} says that {part} is .*must be a class of"):
        (diffusion.check(), diffusion.part(part))


# Adapters that peft reloads as another model


def tuned_adapter(model, path, initial=None, **settings):
    """Saves an adapter after some tuning, and gives the logits of what was tuned."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **settings)
    adapted = get_peft_model(model, config).eval()
    conversion = {}
    if initial is not None:
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(initial)
        adapted.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
        conversion = {"path_initial_model_for_weight_conversion": str(initial)}
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    logits = logits_of(adapted)
    adapted.save_pretrained(path, **conversion)
    return logits


@torch.no_grad()
def logits_of(model):
    return model(torch.arange(2, 9).unsqueeze(0)).logits


def reloaded(base, adapter):
    torch.manual_seed(2)
    return logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


def test_fast_pissa_is_another_model_when_it_is_loaded_which_a_warning_tells(files, tmp_path):
    path = tmp_path / "pissa"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, init_lora_weights="pissa_niter_4")
    assert (reloaded(files.model, path) - logits).abs().max() > 1e-4  # the premise, in peft itself
    with pytest.warns(UserWarning, match=r"init_lora_weights=pissa_niter_4.*save it as plain LoRA"):
        replace(files, adapter=str(path)).load()


def test_a_fast_pissa_that_was_converted_is_the_model_that_was_tuned(files, tmp_path):
    path = tmp_path / "converted"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, tmp_path / "initial", init_lora_weights="pissa_niter_4")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*init_lora_weights")
        found = logits_of(replace(files, adapter=str(path)).load())
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", ["pissa", "olora", "orthogonal", "gaussian", "eva", "mica"])
@pytest.mark.filterwarnings("ignore:.*EVA:UserWarning")
def test_other_initialisations_are_the_model_that_was_tuned(files, tmp_path, made):
    path = tmp_path / "other"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    logits = tuned_adapter(base, path, init_lora_weights=made)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*init_lora_weights=")
        found = logits_of(replace(files, adapter=str(path)).load())
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_lora_ga_is_another_model_when_it_is_loaded_which_a_warning_tells(files, tmp_path):
    path = tmp_path / "lora_ga"
    base = AutoModelForCausalLM.from_pretrained(files.model)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], init_lora_weights="lora_ga"
    )
    config.lora_ga_config = LoraGAConfig()
    ids = torch.arange(2, 9).unsqueeze(0)
    preprocess_loraga(base, config, lambda: base(input_ids=ids, labels=ids).loss.backward())
    adapted = get_peft_model(base, config).eval()
    logits = logits_of(adapted)
    adapted.save_pretrained(path)
    assert (reloaded(files.model, path) - logits).abs().max() > 1e-4  # the premise, in peft itself
    with pytest.warns(UserWarning, match=r"init_lora_weights=lora_ga.*save it as plain LoRA"):
        replace(files, adapter=str(path)).load()


@pytest.mark.filterwarnings("ignore:.*corda_config")
def test_corda_is_not_loaded_without_its_data(files, tmp_path):
    changed(tmp_path / "adapter/adapter_config.json", init_lora_weights="corda")
    with pytest.raises(ValueError, match="preprocess_corda"):  # the premise, in peft itself
        reloaded(files.model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"init_lora_weights=corda.*save it as plain LoRA"):
        files.load()
