"""Data as people have it: data sets by name and split, unquoted tables, samples without answers."""

import pytest
from click.testing import CliRunner
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from pydvl_datainf import InfluenceRun, JobError, SourceError
from pydvl_datainf.cli import main
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.huggingface.records import read_dataset
from pydvl_datainf.jobfile.preparation import prepare
from pydvl_datainf.jobfile.reading import read_job
from tuned import sums, write_lines

JOB = """\
task: causal-lm
model: {model}
adapter: {adapter}
train: {train}
test: test.jsonl
out: influences.zarr
exact_sample: 0
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` writes while it loads."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def job_of(tuned, tmp_path):
    """A job on three test samples."""
    write_lines(tmp_path / "test.jsonl", sums(3))

    def write(train, more="", test="test.jsonl"):
        places = {"model": tuned.causal, "adapter": tuned.causal_adapter, "train": train}
        text = JOB.format(**places).replace("test.jsonl", test) + more
        (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "job.yaml"

    return write


def prepared(path):
    return prepare(read_job(path, {}), path.parent, progress=False)


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


# Data sets


@pytest.fixture
def hub(tmp_path):
    """A folder as it lies on the hub: two configurations, of which one has two splits."""
    folder = tmp_path / "sums"
    for config, splits in {"small": {"train": 9, "held": 4}, "other": {"train": 2}}.items():
        for split, count in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            Dataset.from_list(sums(count)).to_parquet(folder / config / f"{split}.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n"
        "  - {split: train, path: small/train.parquet}\n"
        "  - {split: held, path: small/held.parquet}\n"
        "- config_name: other\n  data_files: other/train.parquet\n---\n"
    )
    return folder


def test_a_data_set_by_config_and_part_of_a_split(hub, job_of):
    train = "{dataset: sums, config: small, split: 'train[2:7]'}"
    made = prepared(
        job_of(train, "columns: {id: id}\n", test="{dataset: sums, config: small, split: held}")
    )
    assert made.material.train.ids == [f"sum {i}" for i in range(2, 7)]
    assert made.material.test.ids == [f"sum {i}" for i in range(4)]
    assert made.material.train.columns["answer"] == [r["answer"] for r in sums(7)[2:]]
    assert made.told["job"]["train"] == {
        "dataset": "sums",
        "config": "small",
        "split": "train[2:7]",
    }


def test_a_run_on_a_data_set(hub, job_of, tmp_path):
    path = job_of("{dataset: ./sums, config: other, split: train}")
    done = run("run", path, "--no-progress")
    assert done.exit_code == 0, done.output
    assert InfluenceRun(tmp_path / "influences.zarr").scores.shape == (3, 2)
    again = run("run", path, "--no-progress")
    assert again.exit_code == 0, again.output


def test_labels_of_a_data_set_are_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    saved = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    saved.to_parquet(tmp_path / "data" / "train.parquet")
    read = read_dataset(str(tmp_path / "data"), None, "train")
    assert [(str(place), record["label"]) for place, record in read] == [
        (f"{tmp_path / 'data'} train, row 0", "good"),
        (f"{tmp_path / 'data'} train, row 1", "bad"),
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (("sums", "small", "absent"), "does not load absent of .*sums"),
        (("sums", "none", "train"), "does not load train of .*sums"),
        (("nowhere", None, "train"), "does not load train of .*nowhere"),
        (("sums", "small", "train[9:]"), "does not load .*no data"),
    ],
)
def test_data_sets_that_are_not_there_are_told(hub, data, told):
    name, config, split = data
    with pytest.raises(SourceError, match=told):
        read_dataset(str(hub.parent / name), config, split)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{dataset: sums}", "line 4: 'train.split' is required"),
        (
            "{dataset: sums, split: train, name: x}",
            "line 4: 'train.name' is unknown; there are config",
        ),
        ("{dataset: [sums], split: train}", "line 4: 'train.dataset' must be string"),
        ("[sums]", "line 4: 'train' must be string"),
    ],
)
def test_fields_of_a_data_set_that_are_wrong(job_of, data, told):
    with pytest.raises(JobError, match=told):
        read_job(job_of(data), {})


def test_an_option_takes_the_place_of_a_data_set(job_of):
    job = read_job(job_of("{dataset: sums, split: train}"), {"train": "train.jsonl"})
    assert job.train == "train.jsonl"


def test_several_splits_in_a_saved_folder_are_still_told(job_of, tmp_path):
    DatasetDict({"train": Dataset.from_list(sums(2))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(SourceError, match="several splits"):
        prepared(job_of("saved"))


# Tables


UNQUOTED = 'prompt\tanswer\nHe said "no\t fine.\n"Why?" she asked\t "Well\n'


def test_quotes_may_be_characters_as_others(tmp_path, job_of):
    (tmp_path / "train.tsv").write_text(UNQUOTED)
    made = prepared(job_of("train.tsv", "quoting: none\n"))
    assert made.material.train.columns["prompt"] == ['He said "no', '"Why?" she asked']
    assert made.material.train.columns["answer"] == [" fine.", ' "Well']
    with pytest.raises(SourceError, match="quoting: none"):
        prepared(job_of("train.tsv"))


def test_an_unquoted_line_with_other_columns_is_told_by_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,"2\n"1,2",3\n')
    with pytest.raises(SourceError, match=r"line 3: other columns.*no text can hold ','"):
        read_records(path, quoted=False)


def test_quoting_belongs_to_tables(job_of):
    with pytest.raises(JobError, match=r"'quoting' is for CSV and TSV files"):
        read_job(job_of("train.jsonl", "quoting: none\n"), {})


# Columns


def test_columns_that_only_training_data_has(tmp_path, job_of):
    records = [record | {"source": f"book {i}"} for i, record in enumerate(sums(4))]
    write_lines(tmp_path / "train.jsonl", records)
    made = prepared(
        job_of(
            "train.jsonl",
            "columns: {show: [id2], show_train: [source]}\n".replace("show: [id2], ", ""),
        )
    )
    assert made.material.train.columns["source"] == [f"book {i}" for i in range(4)]
    assert "source" not in made.material.test.columns
    with pytest.raises(SourceError, match=r"test\.jsonl, line 1: no column 'source'"):
        prepared(job_of("train.jsonl", "columns: {show: [source]}\n"))


def test_a_column_is_shown_once(job_of):
    columns = "columns: {show: [a, b], show_train: [b, c]}\n"
    with pytest.raises(JobError, match=r"line 8: 'columns.show_train' names b, which"):
        read_job(job_of("train.jsonl", columns), {})


# Samples of which nothing counts


@pytest.fixture
def with_unusable(tmp_path):
    """Six samples: two without room for an answer, and two whose answer is empty."""
    records = sums(6)
    for i in (1, 4):
        records[i]["prompt"] *= 40
    for i in (2, 3):
        records[i]["answer"] = ""
    return write_lines(tmp_path / "train.jsonl", records)


def test_samples_of_which_nothing_counts_are_left_out_and_told(with_unusable, job_of, tmp_path):
    path = job_of("train.jsonl", "on_unusable: skip\nmax_length: 40\ncolumns: {id: id}\n")
    dry = run("run", path, "--no-progress", "--dry-run")
    assert dry.exit_code == 0, dry.output
    told = "Training samples left out, since no token of them counts: 2 (lines 2, 5)"
    assert told in dry.stderr
    shown = " ".join(dry.stdout.split())
    assert "Training samples 4 " in shown
    assert "Training samples left out 2 (lines 2, 5)" in shown
    assert "Training samples with an empty answer 2 (lines 3, 4)" in shown
    assert "Test samples left out" not in shown
    done = run("run", path, "--no-progress")
    assert done.exit_code == 0, done.output
    assert told in done.stderr
    made = InfluenceRun(tmp_path / "influences.zarr")
    assert made.train_ids.tolist() == ["sum 0", "sum 2", "sum 3", "sum 5"]
    assert made.metadata("run")["training samples left out"] == "2 (lines 2, 5)"


@pytest.mark.parametrize("more", ["", "on_unusable: error\n"])
def test_samples_of_which_nothing_counts_are_errors_otherwise(with_unusable, job_of, more):
    with pytest.raises(SourceError, match=r"line 2: no token has a label.*on_unusable: skip"):
        prepared(job_of("train.jsonl", f"max_length: 40\n{more}"))


def test_other_errors_are_not_skipped(job_of, tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"prompt": "a", "answer": 3}])
    with pytest.raises(SourceError, match="line 1: column 'answer' must be text"):
        prepared(job_of("train.jsonl", "on_unusable: skip\n"))


def test_data_of_which_nothing_counts_at_all_is_an_error(job_of, tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"prompt": "a" * 90, "answer": "b"}] * 2)
    with pytest.raises(SourceError, match="Of none of the 2 samples of the training data"):
        prepared(job_of("train.jsonl", "on_unusable: skip\nmax_length: 40\n"))


def test_many_lines_are_not_all_told(job_of, tmp_path):
    long = {"prompt": "a" * 90, "answer": "b"}
    write_lines(tmp_path / "train.jsonl", [*sums(1), *[long] * 150])
    made = prepared(job_of("train.jsonl", "on_unusable: skip\nmax_length: 40\n"))
    (told,) = made.left_out.values()
    assert told.startswith("150 (lines 2, 3, ")
    assert told.endswith(", 101, ...)")
