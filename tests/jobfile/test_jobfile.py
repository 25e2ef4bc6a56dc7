"""Job files: what they say, and what is wrong with them, by line and field."""

import contextlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydvl_datainf import JobError
from pydvl_datainf.influence import METHODS
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


@pytest.mark.parametrize(
    "method", ["datainf", "exact", "ekfac", "hessian-free", "scaled-hessian-free", "lissa"]
)
def test_methods(tmp_path, method):
    assert job_of(tmp_path, MINIMAL + f"method: {method}\n").as_told()["method"] == method
    assert job_of(tmp_path, MINIMAL + "method: exact\n", method=method).method == method
    names = {"datainf", "exact", "ekfac", "hessian-free", "scaled-hessian-free", "lissa"}
    assert set(METHODS) == names


def test_the_default_method_is_datainf_beside_exact(tmp_path):
    job = job_of(tmp_path, MINIMAL, method=None)
    assert (job.method, job.exact_sample) == ("datainf", "auto")
    assert job_of(tmp_path, MINIMAL + "exact_sample: 0\n").exact_sample == 0


def test_options_may_say_all():
    options = {"task": "causal-lm", "model": "m", "train": "a", "test": "b", "out": "c"}
    assert read_job(None, options).out == "c"
    with pytest.raises(JobError, match="the command line: 'train' is required"):
        read_job(None, options | {"train": None})


def test_what_is_kept_of_a_job_does_not_tell_where_it_ran(tmp_path):
    told = job_of(tmp_path, MINIMAL, jobs=2).as_told()
    assert told["task"] == "causal-lm"
    assert told["max_length"] == 512
    outside = {"out", "jobs", "scheduler", "device", "max_tokens", "exact_sample"}
    of_other_tasks = {"beta", "timesteps", "labels"}
    assert not (outside | of_other_tasks) & told.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL + "max_lenght: 3\n",
            r"line 6: 'max_lenght' is unknown; did you mean max_length",
        ),
        (MINIMAL + "zzz: 3\n", "line 6: 'zzz' is unknown; there are adapter, attention, bas"),
        (
            MINIMAL + "columns:\n  Anwser: x\n",
            r"line 7: 'columns.Anwser' is unknown; did you mean answer\?",
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
        (MINIMAL + "columns: &c {show: *c}\n", "line 6: 'columns.show' must be a list"),
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
        (
            MINIMAL + "method: newton\n",
            "line 6: 'method' must be 'datainf', 'exact', 'ekfac', 'hessian-free', "
            "'scaled-hessian-free' or 'lissa'",
        ),
        (
            MINIMAL + "method: exact\nrows: recompute\n",
            "line 7: method exact needs all rows together; let 'rows' be zarr or memory",
        ),
        (
            MINIMAL + "method: lissa\nrows: recompute\n",
            "line 7: method lissa needs all rows together; let 'rows' be zarr or memory",
        ),
        (
            MINIMAL + "method: exact\niterations: 10\n",
            "line 7: 'iterations' belongs to method lissa, and not to exact",
        ),
        (
            MINIMAL + "tolerance: 0.1\n",
            "line 6: 'tolerance' belongs to method lissa, and not to datainf",
        ),
        (
            MINIMAL + "method: lissa\niterations: 0\n",
            "line 7: 'iterations' must be greater than 0",
        ),
        (
            MINIMAL + "damping_scale: 0\n",
            "line 6: 'damping_scale' must be greater than 0",
        ),
        (
            MINIMAL + "damping: 0.1\ndamping_scale: 2\n",
            "line 7: 'damping_scale' multiplies automatic damping, and 'damping' is a number",
        ),
        (
            MINIMAL + "method: hessian-free\ndamping_scale: 2\n",
            "line 7: 'damping_scale' is not used by method hessian-free",
        ),
        (
            MINIMAL + "method: ekfac\nrows: recompute\n",
            "line 7: method ekfac needs all rows together; let 'rows' be zarr or memory",
        ),
        (
            MINIMAL + "method: hessian-free\ndamping: 0.1\n",
            "line 7: 'damping' is not used by method hessian-free",
        ),
        (MINIMAL + "exact_sample: -1\n", "line 6: 'exact_sample' must be"),
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
    with pytest.raises(JobError, match="option --method: 'method' must be 'datainf', 'exact', "):
        job_of(tmp_path, MINIMAL, method="newton")
    with pytest.raises(JobError, match="option --task: 'task' must be"):
        job_of(tmp_path, MINIMAL, task="causal")


LAUGHS = "a: &a0 [x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS + MINIMAL, "line 1: 'a' is unknown"),
        (LAUGHS + MINIMAL + "columns: {show: *a11}\n", r"line 18: 'columns.show' must be string"),
        (LAUGHS + MINIMAL + "labels: *a11\n", r"line 18: 'labels' must be string"),
        (MINIMAL + "labels: &x [*x]\n", "not YAML|must be string"),
        (MINIMAL + 'labels: ["\\uD800"]\n', "line 6: .* holds NUL or half a character"),
        (MINIMAL + '"\\uDC00": 1\n', "line 6: .* holds NUL or half a character"),
        (MINIMAL.replace("train.jsonl", '"a\\0b"'), "line 3: .* holds NUL or half a character"),
        (MINIMAL + f"batch_size: {'9' * 6000}\n", "line 6: a number of 6,000 digits"),
        (MINIMAL + f"batch_size: 0x{'f' * 6000}\n", "line 6: a number of 6,002 digits"),
        (MINIMAL + f"batch_size: {10**29}\n", "line 6: 'batch_size' must be less than or equal"),
        (MINIMAL + f"max_tokens: {10**18}\n", "line 6: 'max_tokens' must be less than or equal"),
        (MINIMAL + "exact_sample: -1\n", "line 6: 'exact_sample' must be .*greater than or equal"),
        (MINIMAL + f"jobs: {2**31}\n", "line 6: 'jobs' must be less than or equal to 1024"),
        (MINIMAL + "damping: 1.0e-300\n", "line 6: 'damping' must be .*from 1e-30 to 1e30"),
        (MINIMAL + "damping: {a: 1.0e+300}\n", "line 6: 'damping' must be .*from 1e-30 to 1e30"),
        (MINIMAL + "memory: -1GiB\n", "line 6: 'memory' must be .*an amount"),
        (MINIMAL + "memory: nanGiB\n", "line 6: 'memory' must be .*an amount"),
        (MINIMAL + "memory: 1e999GiB\n", "line 6: 'memory' must be .*an amount"),
        (MINIMAL + f"attention: {'x' * 5000}\n", "line 6: 'attention' must be .*4096 characters"),
        (MINIMAL + "labels: " + "[" * 1200 + "\n", "not YAML"),
        (MINIMAL + "task: causal-lm\n", r"job.yaml, line 6: 'task' stands twice\.$"),
        (MINIMAL + "# " + "x" * 2**20, "no job file: it has more than 1,048,576 bytes"),
        (MINIMAL + "labels: !!python/object/apply:os.getcwd []\n", "line 6: not YAML"),
    ],
    ids=range(23),
)
def test_hostile_files_are_refused_in_a_line_or_two(tmp_path, text, message):
    with pytest.raises(JobError, match=message) as error:
        job_of(tmp_path, text)
    assert len(str(error.value)) < 10_000
    assert "not YAML: /" not in str(error.value)  # a line that is told, inside another


def test_aliases_of_single_values_are_read(tmp_path):
    text = MINIMAL.replace("train: train.jsonl", "train: &data all.jsonl")
    job = job_of(tmp_path, text.replace("test: test.jsonl", "test: *data"))
    assert job.train == job.test == "all.jsonl"


@given(st.text(max_size=200))
def test_any_text_is_a_job_or_refused(text):
    with TemporaryDirectory() as folder, contextlib.suppress(JobError):
        path = Path(folder, "job.yaml")
        path.write_bytes((MINIMAL + text).encode("utf-8", "surrogatepass"))
        assert read_job(path, {}).task


def test_files_begin_with_a_byte_order_mark_or_not(tmp_path):
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert read_job(tmp_path / "job.yaml", {}).task == "causal-lm"
    (tmp_path / "job.yaml").write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(JobError, match="not text in UTF-8"):
        read_job(tmp_path / "job.yaml", {})


def test_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "job.yaml")
    with pytest.raises(JobError, match=r"job.yaml is no file, but a folder, a pipe, a socket"):
        read_job(tmp_path / "job.yaml", {})


def test_files_that_are_missing_or_no_text(tmp_path):
    with pytest.raises(JobError, match=r"There is no file .*job.yaml\.$"):
        read_job(tmp_path / "job.yaml", {})
    (tmp_path / "jobs.yaml").touch()
    with pytest.raises(JobError, match=r"job.yaml\. Did you mean .*/jobs.yaml\?$"):
        read_job(tmp_path / "job.yaml", {})
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="not text in UTF-8"):
        read_job(tmp_path / "job.yaml", {})
