"""What is loaded of a pipeline of diffusers: the same as of other folders."""

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from pydvl_datainf import ModelError
from pydvl_datainf.huggingface import DiffusionFiles
from tuned import changed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]
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
