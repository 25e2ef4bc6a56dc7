"""`pydvl-datainf run`: what is refused, before it begins and with the true reason."""

import json
import re
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from commands import failed
from jobs import changed, unread, write_job
from pydvl_datainf.huggingface import extra
from pydvl_datainf.jobfile import texts
from tuned import sums, write_lines

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("which", ["adapters", "adapters+heads"])
def test_a_model_without_its_adapter_is_refused_before_data_is_read(folder, monkeypatch, which):
    job = json.loads((folder / "job.yaml").read_text()) | {"parameters": which}
    del job["adapter"]
    write_job(folder, job)
    monkeypatch.setattr(texts, "records_of", unread)
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert f"'parameters' is {which}, and {job['model']} holds no adapter" in message


@pytest.mark.parametrize("field", ["model", "adapter"])
@pytest.mark.parametrize("name", ["./mistyped/bass", "mistyped/bass"])
def test_a_mistyped_folder_is_told_with_like_names(folder, field, name):
    for there in ("base", "other"):
        (folder / "mistyped" / there).mkdir(parents=True)
    changed(folder, **{field: name})
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    near = folder / "mistyped"
    assert message.startswith(f"Error: There is no folder {near}/bass. Did you mean {near}/base?")
    assert (" From the hub: Could not load the configuration" in message) == (name[0] != ".")


def test_a_mistyped_file_is_told_with_like_names(folder):
    changed(folder, train="trian.jsonl")
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert f"trian.jsonl. Did you mean {folder}/train.jsonl or " in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "causal"}, r"job.yaml, line 1: 'task' must be"),
        (
            {"method": "newton"},
            "'method' must be 'datainf', 'exact', 'ekfac', 'hessian-free', 'scaled-hessian-free'",
        ),
        ({"train": "nowhere.jsonl"}, "no file or folder .*nowhere.jsonl"),
        ({"columns": {"prompt": "question"}}, "line 1: no column 'question'; there are id, prompt"),
        (
            {"columns": {"id": "prompt", "show": ["answer"]}},
            "'answer', which the result already has",
        ),
        ({"columns": {"show": ["tokens"]}}, "'tokens', which the result already has"),
        ({"columns": {"show": ["my column"]}}, "cannot have as a name"),
        ({"columns": {"id": "same"}}, "no column 'same'"),
        ({"memory": "lots"}, 'line 1: .memory. must be .*an amount such as "2GiB"'),
        ({"out": "memory://x"}, "a place that lasts"),
        ({"max_length": 3}, "test.jsonl, line 1: no token has a label within max_length=3"),
        ({"model": "./nowhere"}, "There is no folder .*nowhere"),
        ({"adapter": "./nowhere"}, "There is no folder .*nowhere"),
        ({"chat": False, "columns": {"messages": "prompt"}}, "must be a list of messages"),
    ],
)
def test_invalid_jobs_begin_nothing(folder, fields, message):
    changed(folder, **fields)
    before = sorted(folder.iterdir())
    assert re.search(message, failed(2, "run", folder / "job.yaml", "--no-progress"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "\ud800"}, "train.jsonl, line 21: column 'id' is not text"),
        ({"prompt": "\udc80"}, "train.jsonl, line 21: column 'prompt' is not text"),
        ({"extra": "\ud800"}, "train.jsonl, line 21: column 'extra' is not text"),
        ({"id": 10**20}, "train.jsonl, line 21: column 'id' holds 1000"),
        ({"id": float("nan")}, "line 21: column 'id' holds nan; it must be all texts or all num"),
        ({"id": True}, "line 21: column 'id' holds True; it must be all texts or all numbers"),
        (
            {"extra": True},
            "line 21: column 'extra' holds True; .*all texts or all numbers or all t",
        ),
        ({"extra": 2**64}, "line 21: column 'extra' holds a number beyond 64 bits"),
    ],
)
def test_hostile_records_begin_nothing(folder, record, message):
    records = [{**one, "extra": 1} for one in sums(20)]
    last = {"id": "last", "prompt": "What is 3?", "answer": " It is 3.", "extra": 1}
    write_lines(folder / "test.jsonl", records[:3])
    write_lines(folder / "train.jsonl", [*records, last | record])
    changed(folder, columns={"id": "id", "show": ["extra"]})
    before = sorted(folder.iterdir())
    assert re.search(message, failed(2, "run", folder / "job.yaml", "--no-progress"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("foo://bar", "foo://bar cannot be opened: Protocol not known: foo"),
        ("reference://x", "reference://x cannot be opened: .*missing 1 required"),
        ("nobucket://bucket/x", "Writing to .* failed: The bucket does not exist.* mend the cause"),
        ("train.jsonl", "train.jsonl is a file"),
        ("train.jsonl/x", "train.jsonl is a file"),
        ("/proc/x", "/proc/x cannot be written: /proc takes no files"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_that_take_no_result_are_told_with_the_true_reason(folder, out, message):
    fsspec.register_implementation("nobucket", NoBucket, clobber=True)
    changed(folder, out=out)
    before = sorted(folder.iterdir())
    told = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert re.search(message, told)
    assert "make room" not in told
    assert "never replaced" not in told
    assert "Another run" not in told
    assert sorted(folder.iterdir()) == before


class NoBucket(MemoryFileSystem):
    """Answers as an object store does whose bucket is not there."""

    protocol = "nobucket"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def pipe_file(self, path, value, **options):
        raise FileNotFoundError("The bucket does not exist")


def test_too_little_memory_begins_nothing(folder):
    changed(folder, memory=1)
    assert "memory are too few" in failed(2, "run", folder / "job.yaml", "--no-progress")
    assert not (folder / "out.zarr").exists()


def test_an_unknown_method_is_told_with_those_that_there_are(folder):
    message = failed(2, "run", folder / "job.yaml", "--no-progress", "--method", "newton")
    assert (
        "option --method: 'method' must be 'datainf', 'exact', 'ekfac', 'hessian-free'," in message
    )
    assert not (folder / "out.zarr").exists()


def test_ids_that_are_there_twice_are_named(folder):
    write_lines(folder / "test.jsonl", [*sums(2), sums(1)[0]])
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert "test.jsonl, line 3: the id 'sum 0' is there twice" in message


@pytest.mark.parametrize("shown", [["a", 1], [{"a": 1}, {"a": 2}], ["a", None]])
def test_columns_that_cannot_be_stored_are_named(folder, shown):
    records = [{**record, "extra": value} for record, value in zip(sums(2), shown, strict=True)]
    write_lines(folder / "test.jsonl", records)
    write_lines(folder / "train.jsonl", records)
    changed(folder, columns={"show": ["extra"]})
    assert "column 'extra'" in failed(2, "run", folder / "job.yaml", "--no-progress")


def test_folders_that_hold_something_else_are_refused_before_anything(folder):
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr" / "notes.txt").write_text("mine")
    for options in ((), ("--dry-run",), ("--overwrite",)):
        message = failed(2, "run", folder / "job.yaml", *options)
        assert "never replaced" in message.replace("\n", " ")
    assert [path.name for path in (folder / "out.zarr").iterdir()] == ["notes.txt"]


def test_a_model_that_cannot_be_used_is_told(folder):
    changed(folder, parameters=["*.nothing"])
    assert "No parameter fits" in failed(2, "run", folder / "job.yaml", "--no-progress")


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    monkeypatch.setattr(extra, "import_module", missing)
    message = failed(1, "run", folder / "job.yaml")
    assert "pydantic is not installed: pip install 'pydvl-datainf[hf]'" in message


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_is_broken_inside_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'inner'", name="inner")

    monkeypatch.setattr(extra, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="inner"):
        extra.imported("pydantic")


def test_a_slow_tokenizer_is_refused(folder, monkeypatch):
    class Slow:
        is_fast = False
        pad_token_id = 0
        eos_token_id = None

    monkeypatch.setattr(texts.ModelFiles, "tokenizer", lambda files: Slow())
    assert "needs a fast tokenizer" in failed(2, "run", folder / "job.yaml", "--no-progress")
