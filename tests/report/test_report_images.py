"""Reports: images of the data, which are embedded, or left out where they may not be read."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pydvl_datainf.report import write_report
from pydvl_datainf.report.columns import kind_of
from pydvl_datainf.report.thumbnails import SIDE, Thumbnails, small_copy
from report_pages import M, N, Page, all_texts, made


@pytest.fixture
def pictures(tmp_path):
    """A folder with images, and what is none."""
    (tmp_path / "data").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 6), (50 * i, 100, 0)).save(tmp_path / "data" / f"{i}.png")
    Image.new("RGBA", (600, 300), (255, 0, 0, 128)).save(tmp_path / "data" / "large.png")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    (tmp_path / "data" / "text.png").write_text("<svg onload='window.hacked = 1'/>")
    return tmp_path


def decoded(url):
    head, _, content = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(BytesIO(b64decode(content)))


def test_small_copies_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((100, 200, 3), dtype=np.uint8)
    stored[:, :50] = 255  # the left, which is the top when turned
    for name in ("a.png", "a.jpg"):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
        pixels = np.asarray(decoded(small_copy(tmp_path / name)))
        assert pixels.shape == (SIDE, SIDE // 2, 3)
        assert pixels[: SIDE // 6].min() > 200
        assert pixels[SIDE // 3 :].max() < 50


@pytest.mark.usefixtures("without_pictures")
def test_images_are_embedded_where_they_can_be_read(pictures):
    names = ["0.png", "1.png", "2.png", "large.png", "broken.png", "text.png", "gone.png"]
    (pictures / "other").mkdir()
    Image.new("L", (4, 4), 7).save(pictures / "other" / "1.png")
    told = {
        "train": {"image": [names[i % len(names)] for i in range(N)]},
        "test": {"image": names[:M]},
        "run": {"job": {"train": "data/a.csv", "test": "other/b.csv"}},
    }
    run = made(pictures / "run.zarr", metadata=told)
    # From the folder of the job file on, as `pydvl-datainf run` stores them.
    page = Page(write_report(run, pictures / "report.html", images=pictures))
    train, test = page.data["train"]["images"], page.data["test"]["images"]
    assert set(train) == {"0.png", "1.png", "2.png", "large.png"}
    assert set(test) == {"1.png"}  # each side from the folder of its own data
    for urls, expected in ((train, [50, 100, 0]), (test, [7, 7, 7])):
        pixels = np.asarray(decoded(urls["1.png"]).convert("RGB"))
        np.testing.assert_array_equal(pixels[2, 3], expected)
    large = decoded(train["large.png"])
    assert large.size == (SIDE, SIDE // 2)
    np.testing.assert_allclose(np.asarray(large)[20, 20], [255, 127, 127], atol=4)  # on white
    assert all_texts(page, "train", "image")[5] == "text.png"
    assert "Left out: 7 images that cannot be read" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_images_without_a_job_are_meant_from_the_given_folder(pictures):
    told = {"train": {"image": ["0.png"] * N}, "test": {"image": ["data/0.png"] * M}}
    run = made(pictures / "run.zarr", metadata=told)
    page = Page(write_report(run, pictures / "report.html", images=pictures / "data"))
    assert set(page.data["train"]["images"]) == {"0.png"}
    assert page.data["test"]["images"] == {}


def test_images_stop_at_their_budget(pictures):
    one = len(small_copy(pictures / "data/0.png"))
    thumbnails = Thumbnails(2 * one + 20, pictures)
    urls = thumbnails.urls(["0.png", "1.png", "0.png", "2.png", ""], [pictures / "data"])
    assert list(urls) == ["0.png", "1.png"]
    assert (thumbnails.left_out, thumbnails.unreadable) == (1, 0)


def test_an_image_too_large_to_be_one_is_not_read(pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    thumbnails = Thumbnails(10**6, pictures)
    assert set(thumbnails.urls(["large.png", "0.png"], [pictures / "data"])) == {"0.png"}


@pytest.mark.usefixtures("without_pictures")
def test_images_outside_the_folder_stay_there(pictures):
    inside = pictures / "data"
    Image.new("RGB", (8, 6)).save(pictures / "private.png")
    (inside / "link.png").symlink_to(pictures / "private.png")
    (inside / "inner.png").symlink_to(inside / "1.png")
    outside = [str(pictures / "private.png"), "../private.png", "link.png", "no/../../private.png"]
    (inside / "no").mkdir()
    within = [str(inside / "0.png"), "../data/0.png", "inner.png"]
    names = outside + within
    told = {
        "train": {"image": [names[i % len(names)] for i in range(N)]},
        "run": {"job": {"train": "../a.csv"}},  # which may be a stranger's, too
    }
    run = made(pictures / "run.zarr", metadata=told)
    page = Page(write_report(run, pictures / "report.html", images=inside))
    assert set(page.data["train"]["images"]) == set(within)
    assert "Left out: 4 images that cannot be read, or lie outside the folder" in page.text
    anywhere = Page(write_report(run, pictures / "report.html", images="/"))
    assert set(anywhere.data["train"]["images"]) == {outside[0], within[0]}


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("image", ["a", "b"], "image"),
        ("picture", ["a.PNG", "b.jpeg"], "image"),
        ("picture", ["a.png", "b"], "text"),
        ("picture", ["", ""], "text"),
        ("image", [1, 2], "integer"),
        ("image", ["a", "b" * 1000], "image"),
        ("image", ["a", "b" * 1001], "text"),
        ("picture", ["a.png", "b" * 997 + ".png"], "text"),
    ],
)
def test_kinds_of_columns(name, values, kind):
    array = np.array(values, dtype=None if kind == "integer" else object)
    assert kind_of(name, array) == kind
