"""`pydvl-datainf run` on images of diffusion models, against the formula."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import commands
from jobs import assert_right, done, run, write_job
from pydvl_datainf import Denoising, InfluenceRun
from pydvl_datainf.huggingface import DiffusionFiles, images
from pydvl_datainf.jobfile.preparation import prepare
from pydvl_datainf.jobfile.reading import read_job
from tuned import tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


# Pixels


def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=3,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"])
SCHEDULE = DDPMScheduler(num_train_timesteps=50)


def moved(model):
    """Adapters moved from their start, where some hide others."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return model.eval()


def pictures(count, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


JOB = {
    "task": "denoising",
    "model": "pipeline",
    "adapter": "adapter",
    "columns": {"label": "label"},
    "train": "train.csv",
    "test": "test.csv",
    "out": "out.zarr",
    "device": "cpu",
    "timesteps": 3,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, an adapter, and images in files."""
    folder = tmp_path_factory.mktemp("made")
    DDPMPipeline(unet(), SCHEDULE).save_pretrained(folder / "pipeline")
    moved(get_peft_model(unet(), LORA)).save_pretrained(folder / "adapter")
    (folder / "images").mkdir()
    for name, count in (("train", 7), ("test", 3)):
        lines = ["image,label"]
        for i, picture in enumerate(pictures(count)):
            Image.fromarray(picture).save(folder / "images" / f"{i}.png")
            lines.append(f"images/{i}.png,{i % 3}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def scores(made, tmp_path_factory):
    """What the job comes to."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("scores"), dirs_exist_ok=True)
    done(folder, JOB)
    return InfluenceRun(folder / "out.zarr").scores[...]


@pytest.fixture
def denoising(made, tmp_path):
    """The job, with what it needs in `tmp_path`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return JOB


def seeds_of(clean, noise):
    return [0 if noise == "common" else images.seed_of(image) for image in clean]


def image_batch(count, noise):
    clean = [images.scaled(picture) for picture in pictures(count)]
    seeds = seeds_of(clean, noise)
    labels = [i % 3 for i in range(count)]
    made = images.ImageSamples.from_images(clean, seeds, {"class_labels": labels})
    (batch,) = made.to_loader(count)
    return batch


def test_a_dry_run_tells_of_images(denoising, tmp_path):
    shown = done(tmp_path, denoising, "--dry-run")
    assert "Training samples 7" in shown
    assert "images a second" in shown


@pytest.mark.parametrize("noise", ["common", "own"])
def test_images_of_a_folder(denoising, tmp_path, noise):
    done(tmp_path, denoising | {"noise": noise})
    stored = InfluenceRun(tmp_path / "out.zarr")
    model = DiffusionFiles(str(tmp_path / "pipeline"), str(tmp_path / "adapter")).load()
    objective = Denoising.from_scheduler(SCHEDULE, 3)
    assert_right(stored, model, objective, image_batch(3, noise), image_batch(7, noise))
    assert stored.metadata("train")["image"][2] == "images/2.png"
    assert all("lora_" in block for block in stored.damping)


def test_arrays_give_the_same(denoising, scores, tmp_path):
    for name, count in (("train", 7), ("test", 3)):
        np.savez(tmp_path / f"{name}.npz", images=pictures(count), label=np.arange(count) % 3)
    arrays = {"train": "train.npz", "test": "test.npz", "out": "arrays.zarr"}
    done(tmp_path, denoising | arrays)
    np.testing.assert_array_equal(InfluenceRun(tmp_path / "arrays.zarr").scores[...], scores)


def test_classes_that_are_stored_as_numbers_go_by_their_names(denoising, scores, tmp_path):
    label = datasets.ClassLabel(names=["c", "b", "a"])
    for name, count in (("train", 7), ("test", 3)):
        columns = {
            "image": [f"images/{i}.png" for i in range(count)],
            "label": ["abc"[i % 3] for i in range(count)],
        }
        features = datasets.Features({"image": datasets.Value("string"), "label": label})
        datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / name)
    job = denoising | {"train": "train", "test": "test", "out": "named.zarr"}
    result = run(tmp_path, job)
    assert result.exit_code == 2
    assert (
        "must be the number of a class, got 'a'; they go from 0 to 2. Name the model's classes"
        in result.stderr
    )
    done(tmp_path, job | {"labels": ["a", "b", "c"]})
    named = InfluenceRun(tmp_path / "named.zarr")
    np.testing.assert_array_equal(named.scores[...], scores)
    assert named.metadata("test")["label"].tolist() == ["a", "b", "c"]
    result = run(tmp_path, job | {"labels": ["a", "b"], "out": "other.zarr"})
    assert "label 'c' is none of a, b, or a number from 0 to 1" in result.stderr


def test_a_model_alone_with_its_schedule(denoising, scores, tmp_path):
    unet().save_pretrained(tmp_path / "alone")
    alone = denoising | {"model": "alone", "out": "alone.zarr"}
    result = run(tmp_path, alone)
    assert result.exit_code == 2
    assert "no noise schedule" in result.stderr
    SCHEDULE.save_pretrained(tmp_path / "alone")
    done(tmp_path, alone)
    np.testing.assert_array_equal(InfluenceRun(tmp_path / "alone.zarr").scores[...], scores)


# Latent images and prompts

PROMPTS = ("What is 2?", "It is 4.", "What")


@pytest.fixture
def drawing(tmp_path):
    """A latent, text-conditioned pipeline with an adapter, as diffusers saves both."""
    torch.manual_seed(0)
    words = tokenizer()
    words.model_max_length = 6
    denoiser = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
    encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(words), **sizes, num_attention_heads=2, eos_token_id=1)
    )
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": words, "scheduler": SCHEDULE}
    for name, part in {**parts, "unet": denoiser}.items():
        part.save_pretrained(tmp_path / "pipeline" / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    denoiser.add_adapter(LORA)
    moved(denoiser).save_lora_adapter(tmp_path / "adapter")
    for name, count in (("train", 6), ("test", 2)):
        images_of_side = pictures(count)
        prompts = np.array([PROMPTS[i % 3] for i in range(count)])
        np.savez(tmp_path / f"{name}.npz", images=images_of_side, caption=prompts)
    job = {
        "task": "denoising",
        "model": "pipeline",
        "adapter": "adapter",
        "columns": {"prompt": "caption"},
        "train": "train.npz",
        "test": "test.npz",
        "out": "out.zarr",
        "device": "cpu",
        "timesteps": [10, 40],
    }
    return job, denoiser, vae.eval(), encoder.eval(), words


def test_latent_images_with_prompts(drawing, tmp_path):
    job, denoiser, vae, encoder, words = drawing
    done(tmp_path, job)
    stored = InfluenceRun(tmp_path / "out.zarr")
    assert stored.metadata("test")["prompt"].tolist() == list(PROMPTS[:2])

    @torch.no_grad()
    def batch(count):
        clean = torch.from_numpy(pictures(count).astype("float32"))[:, None] / 127.5 - 1
        latents = vae.encode(clean).latent_dist.mode() * vae.config.scaling_factor
        texts = [PROMPTS[i % 3] for i in range(count)]
        ids = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        seeds = torch.tensor(seeds_of(clean, "common"))
        return {"images": latents, "seed": seeds, "encoder_hidden_states": encoder(ids)[0]}

    first, second = batch(2), batch(6)
    objective = Denoising(SCHEDULE.alphas_cumprod, [10, 40])
    loaded = DiffusionFiles(str(tmp_path / "pipeline"), str(tmp_path / "adapter")).load()
    matrices = {n.replace("default_0", "default"): p for n, p in loaded.named_parameters()}
    assert all(torch.equal(p, matrices[n]) for n, p in denoiser.named_parameters())
    assert_right(stored, loaded, objective, first, second)


def test_an_adapter_as_pipelines_save_it(drawing, tmp_path):
    job, *_ = drawing
    done(tmp_path, job)
    (weights,) = (tmp_path / "adapter").glob("*.safetensors")
    prefixed = {f"unet.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(prefixed, tmp_path / "lora.safetensors")
    done(tmp_path, job | {"adapter": "lora.safetensors", "out": "other.zarr"})
    first, second = (InfluenceRun(tmp_path / f"{n}.zarr").scores[...] for n in ("out", "other"))
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-6 * np.abs(first).max())
    foreign = {f"text_encoder.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(foreign, tmp_path / "foreign.safetensors")
    result = run(tmp_path, job | {"adapter": "foreign.safetensors", "out": "foreign.zarr"})
    assert result.exit_code == 2
    assert "foreign.safetensors" in result.stderr
    assert not (tmp_path / "foreign.zarr").exists()


@pytest.mark.parametrize("value", ["3", "-1", "inf", "9" * 30])
def test_classes_that_the_model_does_not_have_begin_nothing(denoising, tmp_path, value):
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("images/1.png,1", f"images/1.png,{value}"))
    result = run(tmp_path, denoising)
    assert result.exit_code == 2, result.output
    assert "line 3: column 'label' must be the number of a class" in result.stderr
    assert "they go from 0 to 2" in result.stderr
    assert not (tmp_path / "out.zarr").exists()


def test_pixels_of_no_known_size_are_refused(denoising, tmp_path):
    path = tmp_path / "pipeline" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    result = run(tmp_path, denoising)
    assert result.exit_code == 2, result.output
    assert "sample_size is None" in result.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "pipelin"}, "/pipelin. Did you mean "),
        ({"model": "images"}, "neither the folder of a diffusers pipeline"),
        ({"adapter": "nowhere"}, "There is no file or folder "),
        ({"adapter": None}, "holds no adapter"),
        ({"adapter": "images"}, "must be a safetensors file, or a folder with one"),
        ({"train": "nowhere.csv"}, "no file or folder"),
        ({"columns": {"image": "label"}}, "line 2: the image 0 cannot be read"),
        ({"columns": {"label": "image"}}, "must be the number of a class, got 'images/0.png'"),
        ({"columns": {"prompt": "image"}}, "no tokenizer and text_encoder"),
        ({"timesteps": [60]}, "timesteps must be positions from 0 to 49"),
    ],
)
def test_invalid_jobs_on_images(denoising, tmp_path, fields, message):
    result = run(tmp_path, denoising | fields)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "out.zarr").exists()


def train_of(folder, job):
    """The training samples of a job, and their columns."""
    write_job(folder, job)
    side = prepare(read_job(folder / "job.yaml", {}), folder, progress=False).material.train
    return side.samples.samples, side.columns


def test_images_that_are_kept_are_the_next_training_data(denoising, tmp_path):
    done(tmp_path, denoising | {"exact_sample": 0})
    before, columns = train_of(tmp_path, denoising)
    mean = InfluenceRun(tmp_path / "out.zarr").mean_influence()
    kept = sorted(np.argsort(-mean, kind="stable")[:4].tolist())
    args = ("select", tmp_path / "out.zarr", "--keep-helpful", "4", "-o")
    assert "written as .csv or .jsonl" in commands.failed(1, *args, tmp_path / "next.parquet")
    commands.done(*args, tmp_path / "next" / "kept.csv")
    shown = {"columns": {"label": "label", "show_train": ["mean_influence"]}}
    after, told = train_of(tmp_path, denoising | {"train": "next/kept.csv"} | shown)
    assert len(after) == 4
    for sample, i in zip(after, kept, strict=True):
        assert sample.keys() == before[i].keys()
        assert all(torch.equal(sample[key], before[i][key]) for key in sample)
    assert told["label"] == [columns["label"][i] for i in kept]
    assert [float(value) for value in told["mean_influence"]] == mean[kept].tolist()
    dropped = (tmp_path / "next" / "kept.dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["position"] for line in dropped] == [
        i for i in np.argsort(mean, kind="stable").tolist() if i not in kept
    ]
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("images/1.png,1", "images/1.png,2"))
    message = commands.failed(1, *args, tmp_path / "other.csv")
    assert "line 3: 'label' is '2', and was '1' when" in message
    assert not (tmp_path / "other.csv").exists()
