"""What is loaded of a folder: whole safetensors, and never code; all else is refused by name."""

import json
import os
import pickle
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pydvl_datainf import ModelError
from pydvl_datainf.cli import main
from tuned import changed, sums, write_lines

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
