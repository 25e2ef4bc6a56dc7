"""Images from files and arrays, as a diffusion model takes them."""

import os
import struct
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from pydvl_datainf import SourceError
from pydvl_datainf.huggingface import DiffusionFiles, ImageReader, ImageSamples, read_arrays
from pydvl_datainf.huggingface.images import scaled, seed_of
from pydvl_datainf.huggingface.records import Place
from pydvl_datainf.report.thumbnails import Thumbnails

RNG = np.random.default_rng(0)


def placed(name):
    return Place("train.csv", "line", 2), {"image": name}


def test_bytes_become_numbers_from_minus_one_to_one():
    image = np.array([[0, 255], [51, 204]], dtype=np.uint8)
    assert scaled(image).tolist() == [[[-1.0, 1.0], [pytest.approx(-0.6), pytest.approx(0.6)]]]
    colours = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert scaled(colours).shape == (3, 4, 6)
    assert scaled(colours)[2, 1, 5] == pytest.approx(colours[1, 5, 2] / 127.5 - 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_of_the_right_size_are_read_as_they_are(tmp_path, channels, mode):
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    read = ImageReader(tmp_path, channels, (4, 6)).read(placed("a.png"))
    exact = scaled(np.asarray(Image.fromarray(pixels).convert(mode)))
    assert read.shape == (channels, 4, 6)
    assert torch.equal(read, exact)


def test_other_sizes_are_scaled_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    read = ImageReader(tmp_path, 1, (4, 4)).read(placed("wide.png"))
    assert read.shape == (1, 4, 4)
    assert read.min() > 0.5  # the middle third, with something of its borders


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    for name in ("a.png", "nowhere.png"):
        with pytest.raises(SourceError, match=rf"train.csv, line 2: the image {name} cannot be"):
            ImageReader(tmp_path, 1, (4, 4)).read(placed(name))


@pytest.mark.parametrize("turned", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, turned):
    pixels = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    across = pixels if turned < 5 else pixels.T  # 5 to 8 mirror at a diagonal as well
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (0,), 7: (0, 1), 8: (1,)}
    stored = np.flip(across, flips.get(turned, ()))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    read = ImageReader(tmp_path, 1, (4, 6)).read(placed("a.png"))
    assert torch.equal(read, scaled(pixels))


def odd_exif(orientation):
    """EXIF with an orientation, and a resolution that is a text."""
    tags = [(0x112, 3, 1, struct.pack("<HH", orientation, 0)), (0x11A, 2, 4, b"abc\0")]
    entries = b"".join(struct.pack("<HHI", tag, kind, n) + value for tag, kind, n, value in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [(odd_exif(6), -1), (odd_exif(3), 2), (odd_exif(9), 0), (b"garbage!", 0)],
    ids=["quarter", "half", "no such orientation", "garbage"],
)
def test_odd_exif_does_not_keep_an_image_from_being_read_and_shown(tmp_path, exif, turned):
    pixels = np.kron(RNG.integers(0, 2, (6, 6), dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        read = ImageReader(tmp_path, 1, (48, 48)).read(placed(name))
        expected = scaled(np.rot90(pixels, turned))
        assert (read - expected).abs().mean() < 0.05
        url = Thumbnails(10**6, tmp_path).urls([name], [tmp_path])[name]
        shown = Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("L")
        assert (scaled(np.asarray(shown)) - expected).abs().mean() < 0.05


@pytest.mark.parametrize("palette", [False, True])
def test_colours_are_those_of_the_file_also_where_they_are_transparent(tmp_path, palette):
    pixels = RNG.integers(0, 4, (4, 6, 3), dtype=np.uint8) * 85
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = 1
    else:
        image.putalpha(0)
    image.save(tmp_path / "a.png")
    read = ImageReader(tmp_path, 3, (4, 6)).read(placed("a.png"))
    assert torch.equal(read, scaled(pixels))


@pytest.mark.parametrize(("kind", "mode"), [("uint16", "I;16"), ("int32", "I"), ("float32", "F")])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_more_than_8_bits_are_refused(tmp_path, kind, mode, channels):
    Image.fromarray(np.full((4, 6), 300).astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=rf"line 2: the image a\.tif has more .*\(mode {mode}\)"):
        ImageReader(tmp_path, channels, (4, 6)).read(placed("a.tif"))


def test_arrays_of_bytes_and_of_numbers(tmp_path):
    pixels = RNG.integers(0, 256, (3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "bytes.npz", images=pixels, label=np.arange(3), name=np.array(["a"] * 3))
    records, images = read_arrays(tmp_path / "bytes.npz")
    assert [record for _, record in records] == [{"label": i, "name": "a"} for i in range(3)]
    assert torch.equal(images[1], scaled(pixels[1]))
    latents = RNG.normal(size=(3, 4, 2, 2))
    np.savez(tmp_path / "latents.npz", images=latents)
    _, images = read_arrays(tmp_path / "latents.npz")
    assert images[2].dtype == torch.float32
    np.testing.assert_allclose(images[2], latents[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4))}, "needs an array 'images'"),
        ({"images": np.zeros((2, 4))}, "needs an array 'images'"),
        ({"images": np.zeros((2, 4, 4), dtype=np.int64)}, "of bytes or of floating"),
        ({"images": np.zeros((2, 4, 4)), "label": np.zeros(3)}, "label must have one entry"),
        ({"images": np.zeros((0, 4, 4))}, "images must have one entry"),
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        read_arrays(tmp_path / "a.npz")


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "a.npz").write_text("no arrays")
    for name in ("a.npz", "nowhere.npz"):
        with pytest.raises(SourceError, match="cannot be read as"):
            read_arrays(tmp_path / name)


def test_the_same_image_has_the_same_seed():
    images = torch.rand(2, 1, 4, 4)
    assert seed_of(images[0]) == seed_of(images[0].clone())
    assert seed_of(images[0]) != seed_of(images[1])
    assert 0 <= seed_of(images[0]) < 2**32


def test_samples_keep_their_order_and_conditions():
    images = list(torch.rand(5, 1, 4, 4))
    samples = ImageSamples.from_images(images, range(5), {"class_labels": [4, 3, 2, 1, 0]})
    batches = list(samples.to_loader(2))
    assert [len(batch["seed"]) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch["seed"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch["class_labels"] for batch in batches]).tolist() == [4, 3, 2, 1, 0]
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), torch.stack(images))


def test_a_pipeline_tells_its_parts(tmp_path):
    index = '{"unet": ["diffusers", "UNet2DModel"], "vae": [null, null], "_class_name": "X"}'
    (tmp_path / "model_index.json").write_text(index)
    files = DiffusionFiles(str(tmp_path))
    assert files.denoiser == "unet"
    assert files.part("vae") is None
    assert files.part("text_encoder") is None


def test_pipes_and_damaged_images_are_named_with_their_line(tmp_path):
    reader = ImageReader(tmp_path, 3, (4, 6))
    Image.fromarray(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole.replace(b"IDAT", b" \x99/\xfb"))
    (tmp_path / "c.png").write_bytes(whole[:50])
    os.mkfifo(tmp_path / "d.png")
    reader.read(placed("a.png"))
    for name in ("b.png", "c.png", "d.png", "a\0.png", "x" * 300):
        with pytest.raises(SourceError, match=r"line 2: the image .* cannot be read"):
            reader.read(placed(name))
