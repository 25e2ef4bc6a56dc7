"""Training data that jobs name: what is written of it is read again as it was."""

import datetime

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from pydvl_datainf import OutputExistsError, SourceError
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.jobfile.schema import HubData, Job
from pydvl_datainf.jobfile.sources import (
    ArraySource,
    HubSource,
    ImageSource,
    next_name,
    source_of,
)
from pydvl_datainf.results.selection import SampleSelection

KEPT = [0, 2, 3]
SCORES = np.array([0.1, -0.25, 1 / 3, 4e-9])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` writes while it loads."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def chosen(kept=KEPT):
    dropped = np.setdiff1d(np.arange(4), kept)
    return SampleSelection(np.array(kept, int), dropped, "mean influence", SCORES, "told")


def hub(folder, columns, features=None):
    (folder / "data").mkdir()
    Dataset.from_dict(columns, features).to_parquet(folder / "data" / "train.parquet")
    return HubSource(HubData(dataset="data", split="train"), folder)


def records(path):
    return [record for _, record in read_records(path)]


@pytest.mark.parametrize("name", ["next", "next.jsonl", "next.parquet"])
def test_labels_of_a_data_set_keep_their_names(tmp_path, name):
    names = ClassLabel(names=["bad", "good"])
    source = hub(
        tmp_path,
        {
            "text": ["a", "b\u2028", "\r", "é"],
            "label": [1, 0, -1, 0],
            "tags": [[1], [], [0, 1], [0]],
            "n": [1, 2, 3, None],
        },
        Features(
            {"text": Value("string"), "label": names, "tags": List(names), "n": Value("int8")}
        ),
    )
    read, out = source.records(), tmp_path / name
    source.check_writable(out, overwrite=False)
    source.write(read, chosen(), out)
    assert records(out) == [read[i][1] for i in KEPT]
    assert [record["label"] for record in records(out)] == ["good", None, "bad"]
    with pytest.raises(OutputExistsError, match=r"is there\. Choose another name, or replace it"):
        source.check_writable(out, overwrite=False)
    source.write(read, chosen([1]), out)
    assert records(out) == [read[1][1]]


def test_what_json_cannot_hold_goes_elsewhere(tmp_path):
    day = datetime.date(2020, 2, 29)
    source = hub(tmp_path, {"day": [day] * 4})
    read = source.records()
    with pytest.raises(SourceError, match=r"JSON cannot hold .* a name ending in \.parquet"):
        source.write(read, chosen(), tmp_path / "next.jsonl")
    source.write(read, chosen(), tmp_path / "next.parquet")
    assert records(tmp_path / "next.parquet") == [{"day": day}] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data", "next.parquet"]


def test_nothing_left_writes_nothing(tmp_path):
    source = hub(tmp_path, {"text": list("abcd")})
    with pytest.raises(SourceError, match=r"No sample is left of .*data train\. Keep more"):
        source.write(source.records(), chosen([]), tmp_path / "next")
    assert not (tmp_path / "next").exists()


ROWS = [
    "image,caption,mean_influence\n",
    'a.png,"two, with a comma",old\n',
    'sub/b.png,"""quoted""",old\n',
    '/c.png,"two\nlines",old\n',
    "../d.png,plain,old\n",
]


@pytest.mark.parametrize("name", ["next.csv", "there/next.csv", "there/next.jsonl"])
def test_paths_of_images_are_meant_from_the_new_table_on(tmp_path, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.csv").write_text("".join(ROWS), newline="")
    source, out = ImageSource(tmp_path / "here" / "train.csv", "image"), tmp_path / "here" / name
    read = source.records()
    source.check_writable(out, overwrite=False)
    source.write(read, chosen(), out)
    found = records(out)
    for record, i in zip(found, KEPT, strict=True):
        then = (tmp_path / "here" / read[i][1]["image"]).resolve()
        assert (out.parent / record["image"]).resolve() == then
        assert record["caption"] == read[i][1]["caption"]
        assert float(record["mean_influence"]) == SCORES[i]


def test_images_of_a_table_behind_a_link_are_beside_the_link(tmp_path):
    (tmp_path / "blob").write_text("".join(ROWS), newline="")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.csv").symlink_to("../blob")
    source, out = ImageSource(tmp_path / "here" / "train.csv", "image"), tmp_path / "next.csv"
    source.write(source.records(), chosen([0, 3]), out)
    assert [record["image"] for record in records(out)] == ["here/a.png", "d.png"]


def test_a_table_in_the_same_folder_quotes_what_needs_it(tmp_path):
    (tmp_path / "train.csv").write_text("".join(ROWS), newline="")
    source, out = ImageSource(tmp_path / "train.csv", "image"), tmp_path / "next.csv"
    source.write(source.records(), chosen([0, 3]), out)
    assert out.read_text() == (
        'image,caption,mean_influence\na.png,"two, with a comma",0.1\n../d.png,plain,4e-09\n'
    )


def test_arrays_stay_as_they_are(tmp_path):
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    np.savez(tmp_path / "train.npz", images=images, label=np.array(list("abcd")))
    source, out = ArraySource(tmp_path / "train.npz"), tmp_path / "next.npz"
    source.check_writable(out, overwrite=False)
    source.write(source.records(), chosen(), out)
    with np.load(out) as file:
        assert sorted(file.files) == ["images", "label", "mean_influence"]
        assert file["images"].dtype == np.uint8
        np.testing.assert_array_equal(file["images"], images[KEPT])
        assert file["label"].tolist() == ["a", "c", "d"]
        np.testing.assert_array_equal(file["mean_influence"], SCORES[KEPT])
    again = ArraySource(out).records()  # as the next job reads it
    assert [record["label"] for _, record in again] == ["a", "c", "d"]
    assert [record["mean_influence"] for _, record in again] == SCORES[KEPT].tolist()
    with pytest.raises(OutputExistsError, match="is the data itself"):
        source.check_writable(tmp_path / "train.npz", overwrite=True)
    with pytest.raises(SourceError, match=r"are written as \.npz"):
        source.check_writable(tmp_path / "next.csv", overwrite=True)


@pytest.mark.parametrize(
    ("task", "train", "name"),
    [
        ("causal-lm", "data/train.TSV", "next.tsv"),
        ("causal-lm", "data/train", "next"),
        ("causal-lm", {"dataset": "sums", "split": "train"}, "next.jsonl"),
        ("denoising", "train.csv", "next.csv"),
        ("denoising", "train.parquet", "next.jsonl"),
        ("denoising", "train.npz", "next.npz"),
    ],
)
def test_the_name_that_is_proposed_can_be_written(tmp_path, task, train, name):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train.TSV").touch()
    fields = {"model": "m", "test": "t.csv", "out": "o"}
    job = Job.model_validate({"task": task, "train": train, **fields})
    assert next_name(job) == name
    source_of(job, tmp_path).check_writable(tmp_path / name, overwrite=False)
