"""Job files: what they say, and what is wrong with them, by line and field."""

from pathlib import Path

import pytest

from pydvl_datainf import JobError
from pydvl_datainf.jobfile.places import anchored, model_in, path_in
from pydvl_datainf.jobfile.reading import read_job

MINIMAL = """\
task: causal-lm
model: models/base
train: train.jsonl
test: test.jsonl
out: influences.zarr
"""


def job_of(folder, text, **options):
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return read_job(path, options)


def test_defaults(tmp_path):
    job = job_of(tmp_path, MINIMAL)
    assert (job.parameters, job.damping, job.rows, job.memory) == (
        "adapters",
        "auto",
        "auto",
        "2GiB",
    )
    assert job.adapter is None
    assert not job.trust_remote_code


def test_all_fields(tmp_path):
    job = job_of(
        tmp_path,
        MINIMAL
        + """\
adapter: adapters/tuned
columns: {prompt: question, answer: reply, id: name, show: [level]}
chat: true
max_length: 256
parameters: ["*.layers.11.*"]
reduction: sum
damping: {"a.b": 0.1}
blocks: parameter_wise
rows: zarr
memory: 1GiB
batch_size: 32
max_tokens: 4096
by_block: true
self_influence: true
device: cpu
dtype: bfloat16
attention: eager
scheduler: tcp://localhost:8786
""",
    )
    assert job.columns.prompt == "question"
    assert job.columns.show == ("level",)
    assert job.parameters == ("*.layers.11.*",)
    assert job.damping == {"a.b": 0.1}


def test_options_take_precedence(tmp_path):
    job = job_of(tmp_path, MINIMAL, model="other", task=None, jobs=2)
    assert (job.model, job.task, job.jobs) == ("other", "causal-lm", 2)


def test_options_may_say_all():
    options = {"task": "causal-lm", "model": "m", "train": "a", "test": "b", "out": "c"}
    assert read_job(None, options).out == "c"
    with pytest.raises(JobError, match="the command line: 'train' is required"):
        read_job(None, options | {"train": None})


def test_what_is_kept_of_a_job_does_not_tell_where_it_ran(tmp_path):
    told = job_of(tmp_path, MINIMAL, jobs=2).as_told()
    assert told["task"] == "causal-lm"
    assert told["max_length"] == 512
    outside = {"out", "jobs", "scheduler", "device", "max_tokens"}
    of_other_tasks = {"beta", "timesteps", "labels"}
    assert not (outside | of_other_tasks) & told.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL + "max_lenght: 3\n",
            r"line 6: 'max_lenght' is unknown; there are adapter, attent",
        ),
        (MINIMAL + "columns:\n  promt: x\n", r"line 7: 'columns.promt' is unknown; .*prompt"),
        (MINIMAL + "columns:\n  prompt: 3\n", r"line 7: 'columns.prompt' must be string; got 3"),
        (MINIMAL + "columns: x\n", r"line 6: 'columns' must be fields and values; got 'x'"),
        (MINIMAL + "columns: {show: x}\n", "line 6: 'columns.show' must be a list; got 'x'"),
        (MINIMAL + "top_k: yes\n", "line 6: 'top_k' must be a number, not a truth value; got True"),
        (MINIMAL + "damping: yes\n", "line 6: 'damping' must be .*a number, not a truth value"),
        (MINIMAL + "damping: .inf\n", "line 6: 'damping' must be .*finite"),
        (MINIMAL + "chat: 1\n", "line 6: 'chat' must be boolean; got 1"),
        (MINIMAL + "memory: lots\n", "line 6: 'memory' must be .*an amount such as"),
        (MINIMAL + "parameters: []\n", "line 6: 'parameters' must be"),
        (
            MINIMAL.replace("influences.zarr", "memory://x"),
            "line 5: 'out' must be a place that las",
        ),
        (MINIMAL + "? [a, b]\n: 1\n", "line 6: a field's name must be text"),
        (MINIMAL + "dtype: \x01\n", "not YAML"),
        (MINIMAL + "seed: 2024-13-01\n", "not YAML: month must be in"),
        (MINIMAL + "columns: &c {show: *c}\n", "not YAML"),
        (
            MINIMAL.replace("causal-lm", "sequence-classification") + "labels: [a, a]\n",
            "line 6: 'labels' must differ",
        ),
        (
            MINIMAL.replace("causal-lm", "causal"),
            "line 1: 'task' must be 'causal-lm', 'preference', 'seq",
        ),
        (MINIMAL + "damping: -1\n", r"line 6: 'damping' must be 'auto' or greater than 0"),
        (MINIMAL + "damping: {a: 1, b: 0}\n", "line 6: 'damping' must be"),
        (MINIMAL + "max_length: 0\n", "line 6: 'max_length' must be greater than 0; got 0"),
        (MINIMAL + "max_length: many\n", "line 6: 'max_length' must be .*integer.*; got 'many'"),
        (MINIMAL + "parameters: heads\n", "line 6: 'parameters' must be 'adapters', 'adapters"),
        (MINIMAL + "memory: []\n", "line 6: 'memory' must be"),
        (MINIMAL.replace("out: influences.zarr", ""), "'out' is required"),
        (MINIMAL.replace("model: models/base", "model: ''"), "line 2: 'model' must be"),
        (MINIMAL + "task: causal-lm\n", "line 6: 'task' stands twice"),
        (MINIMAL + "columns: {id: a, id: b}\n", "line 6: 'id' stands twice"),
        (MINIMAL + "columns: [\n", "line 7: not YAML"),
        (MINIMAL + "chat: !!python/name:os.system\n", "line 6: not YAML: could not determine"),
        ("- task\n", "expected fields such as"),
        ("", "expected fields such as"),
        # What does not go together.
        (MINIMAL + "columns: {label: x}\n", "line 6: 'columns.label' does not belong to task caus"),
        (MINIMAL + "columns: {text: x, answer: y}\n", "line 6: answer and text exclude each other"),
        (MINIMAL + "chat: true\ncolumns: {text: x}\n", "line 6: 'chat' is for prompt and answer"),
        (
            MINIMAL + "labels: [a, b]\n",
            "line 6: 'labels' does not belong to task causal-lm, but to seq",
        ),
        (MINIMAL + "top_k: 3\nby_block: true\n", "line 7: 'top_k' keeps total scores only"),
        (MINIMAL + "jobs: 2\nscheduler: tcp://x\n", "line 6: 'scheduler' and 'jobs' exclude"),
        (MINIMAL.replace("causal-lm", "preference"), "line 1: 'adapter' is required"),
        (
            MINIMAL.replace("causal-lm", "denoising") + "max_tokens: 3\n",
            "line 6: 'max_tokens' does",
        ),
        (
            MINIMAL.replace("causal-lm", "token-classification") + "chat: true\n",
            "line 6: 'chat' does not belong to task token-classification",
        ),
        (
            MINIMAL.replace("causal-lm", "sequence-classification") + "reduction: sum\n",
            "line 6: 'reduction' does not belong to task sequence-cl",
        ),
    ],
)
def test_errors_name_line_and_field(tmp_path, text, message):
    with pytest.raises(JobError, match=message):
        job_of(tmp_path, text)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    with pytest.raises(JobError) as raised:
        job_of(tmp_path, "task: causal\nmodle: x\n")
    assert str(raised.value).count("\n  - ") == 6


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(JobError, match="option --task: 'task' must be"):
        job_of(tmp_path, MINIMAL, task="causal")


def test_files_that_are_missing_or_no_text(tmp_path):
    with pytest.raises(JobError, match=r"job.yaml cannot be read: No such file"):
        read_job(tmp_path / "job.yaml", {})
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="not text in UTF-8"):
        read_job(tmp_path / "job.yaml", {})


def test_places(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    assert path_in(tmp_path, "a/b.csv") == str(tmp_path / "a" / "b.csv")
    assert path_in(tmp_path, "/a/b.csv") == "/a/b.csv"
    assert path_in(tmp_path, "s3://bucket/a") == "s3://bucket/a"
    assert path_in(tmp_path, "~/a") == str(Path.home() / "a")
    assert model_in(tmp_path, "here") == str(tmp_path / "here")
    assert model_in(tmp_path, "owner/name") == "owner/name"
    assert model_in(tmp_path, "./there") == str(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    options = {"train": "a.csv", "model": "here", "adapter": None, "task": "x"}
    assert anchored(options) == {
        "train": str(tmp_path / "a.csv"),
        "model": str(tmp_path / "here"),
        "adapter": None,
        "task": "x",
    }
