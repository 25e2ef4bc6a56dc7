"""Metadata that are damaged, foreign or absurd: an error that names them, never other values."""

import json
import random
import re
import shutil
from functools import partial

import google_crc32c
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from numcodecs import Zstd
from zarr.storage import LocalStore

from pydvl_datainf import StoreError
from pydvl_datainf.cli import main
from pydvl_datainf.results.chunks import ChunkGuard, expanded_size
from pydvl_datainf.results.layout import arrays_said
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import sealed_attributes
from stopped_run import TIGHT, Interrupt, M, N, chunks, run

KINDS = {
    "zarr": {
        "rows": "zarr",
        "self_influence": True,
        "exact_sample": 4,
        "ids": {"train": [f"t{i}" for i in range(N)]},
        "metadata": {
            "train": {"label": ["a", "b", "c"] * 7 + ["d"] * (N - 21), "loss": [0.5] * N},
            "test": {"flag": [i % 2 == 0 for i in range(M)]},
            "run": {"purpose": "test"},
        },
    },
    "top": {"top_k": 3, "query_groups": ["x", "y", "z"] * 3 + ["x", "y"]},
}
OWN = ["approximation", "block", "damping", "mean_influence", "row_scales", "rows/0"]
OWN += ["scores", "self_influence", "squared_norms", "test", "test_flag", "train", "train_label"]
OWN += ["train_loss", "training_loss", "width"]
ARRAYS = [("zarr", name) for name in OWN] + [("top", name) for name in ("top", "top_scores", "end")]
FLIPS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stores of finished runs by kind, to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, settings in KINDS.items():
        run(folder / kind, **settings)
    return folder


@pytest.fixture(scope="module")
def right(whole):
    return {kind: values(whole / kind) for kind in KINDS}


@pytest.fixture
def copied(whole, tmp_path):
    return lambda kind: shutil.copytree(whole / kind, tmp_path / "run.zarr")


def values(store):
    """All that a run tells, as text: equal texts are equal bits."""
    found = InfluenceRun(store)
    found.check()
    error = found.approximation_error
    told = [
        found.damping,
        found.test_ids.tolist(),
        {
            side: {k: v.tolist() for k, v in found.metadata(side).items()}
            for side in ("test", "train")
        },
        found.metadata("run"),
        [part.tolist() for end in ("helpful", "harmful") for part in found.top(3, most=end)],
        found.mean_influence().tolist(),
        error and [error.errors.tolist(), error.cosines.tolist(), error.n, error.m],
        error and [error.score_error, error.rank_correlation, error.blocks, error.widths.tolist()],
        found.has_self_influence and found.self_influence().tolist(),
    ]
    return repr(told)


def outcome(function, *arguments):
    """What comes back, or what is raised, whatever it is."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def names_it(error, name):
    return isinstance(error, StoreError) and f"'{name}'" in str(error)


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def some_bits(content, seed, count=FLIPS):
    return random.Random(seed).sample(range(8 * len(content)), count)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr


def assert_same(store, expected):
    names = chunks(expected)
    assert chunks(store) == names
    assert [n for n in names if (store / n).read_bytes() != (expected / n).read_bytes()] == []
    for file in expected.glob("*/**/zarr.json"):
        assert (store / file.relative_to(expected)).read_bytes() == file.read_bytes()


# The metadata of arrays


def test_premise_these_are_all_arrays(whole):
    for kind in KINDS:
        assert arrays_in(whole / kind) >= {name for of, name in ARRAYS if of == kind}
    assert arrays_in(whole / "zarr") == set(OWN)


def arrays_in(store):
    members = zarr.open_group(store, mode="r").members(None)
    return {name for name, member in members if isinstance(member, zarr.Array)}


DAMAGES = {
    "deleted": lambda content: None,
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "another kind": lambda content: content.replace(b'"array"', b'"group"'),
    "another separator": lambda content: content.replace(b'"/"', b'"."'),
    "another data type": lambda content: content.replace(b'"data_type": "', b'"data_type": "x'),
    "without codecs": lambda content: content.replace(b'"crc32c"', b'"crc32d"'),
    "a list": lambda content: b"[1, 2]",
    "deep": lambda content: b"[" * 100_000,
    "no text": lambda content: b"\xff\xfe\x00",
}


def put(file, content):
    file.unlink()
    for some in [content] if content is not None else []:
        file.write_bytes(some)


@pytest.mark.parametrize(("kind", "name"), ARRAYS)
def test_damaged_metadata_of_an_array_are_refused_by_its_name(copied, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    content = file.read_bytes()
    for damage in DAMAGES.values():
        put(file, damage(content))
        assert not file.exists() or file.read_bytes() != content  # the premise
        with pytest.raises(StoreError, match=f"'{name}'.* same arguments"):
            InfluenceRun(store).check()
        file.write_bytes(content)
    InfluenceRun(store).check()


@pytest.mark.parametrize(("kind", "name"), ARRAYS)
def test_a_flipped_bit_is_refused_or_changes_nothing(copied, right, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    content = file.read_bytes()
    refusals = 0
    for bit in some_bits(content, name):
        file.write_bytes(flipped(content, bit))
        found = outcome(values, store)
        assert found == right[kind] or names_it(found, name), (bit, found)
        refusals += found != right[kind]
    assert refusals >= FLIPS / 4  # much of the file is blanks


@pytest.mark.parametrize(("kind", "damage"), [("zarr", "deleted"), ("zarr", "cut"), ("top", "cut")])
def test_the_same_call_makes_damaged_metadata_again(copied, whole, right, kind, damage):
    store = copied(kind)
    for name in (name for of, name in ARRAYS if of == kind):
        put(store / name / "zarr.json", DAMAGES[damage]((store / name / "zarr.json").read_bytes()))
    run(store, **KINDS[kind])
    assert_same(store, whole / kind)
    assert values(store) == right[kind]


@pytest.mark.parametrize(("kind", "name"), [*ARRAYS[::5], ("top", "top")])
def test_the_same_call_makes_the_metadata_of_one_array_again(copied, whole, right, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    put(file, DAMAGES["another separator"](file.read_bytes()))
    run(store, **KINDS[kind])
    assert_same(store, whole / kind)
    assert values(store) == right[kind]


def test_chunks_that_are_sound_are_kept(copied, whole):
    store = copied("zarr")
    (store / "scores/zarr.json").write_text("{")
    before = {name: (store / name).stat().st_mtime_ns for name in chunks(store)}
    run(store, **KINDS["zarr"])
    assert {name: (store / name).stat().st_mtime_ns for name in chunks(store)} == before
    attributes = [InfluenceRun(place).attrs for place in (store, whole / "zarr")]
    assert attributes[0] == attributes[1]  # nothing was computed


@pytest.mark.parametrize("name", ["scores", "train_label", "approximation", "self_influence"])
def test_commands_name_the_array_whose_metadata_are_damaged(copied, tmp_path, name):
    store = copied("zarr")
    for damage in ("deleted", "another data type"):
        file = store / name / "zarr.json"
        put(file, DAMAGES[damage](file.read_bytes()))
        for command in (["info"], ["info", "--check"]):
            assert f"'{name}'" in refused(*command, store)
        page = invoke("report", store, "-o", tmp_path / "page.html")
        assert page.exit_code == 1
        assert f"'{name}'" in page.stderr
        file.write_bytes(b"{}")
    for name in ("mean_influence", "train"):
        (store / name / "zarr.json").write_text("{}")
        assert "zarr.json" not in refused("top", store)


def test_consolidated_metadata_that_say_something_else_are_found_and_made_again(copied, whole):
    store = copied("zarr")
    content = (whole / "zarr/zarr.json").read_bytes()
    start = content.index(b'"consolidated_metadata"')
    damaged = content[:start] + content[start:].replace(b'"level": 1', b'"level": 3')
    (store / "zarr.json").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"consolidated metadata .*'block', .* same arguments"):
        InfluenceRun(store).check()
    run(store, **KINDS["zarr"])
    assert (store / "zarr.json").read_bytes() == content


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_damaged_metadata_of_the_group_of_rows_hide_no_rows(copied, whole, right, damage):
    store = copied("zarr")
    file = store / "rows/zarr.json"
    put(file, DAMAGES[damage](file.read_bytes()))
    assert values(store) == right["zarr"]
    run(store, **KINDS["zarr"])
    assert values(store) == right["zarr"]


# The group itself


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut", "a list", "deep", "no text"])
def test_a_damaged_group_is_refused_with_a_remedy(copied, damage):
    store = copied("top")
    file = store / "zarr.json"
    put(file, DAMAGES[damage](file.read_bytes()))
    error = outcome(values, store)
    assert isinstance(error, StoreError)
    assert "run.zarr" in str(error)
    again = outcome(partial(run, store, **KINDS["top"]))
    assert isinstance(again, StoreError)
    assert "by hand" in str(again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_the_group_is_refused_or_changes_nothing(copied, whole, right, kind):
    store = copied(kind)
    content = (store / "zarr.json").read_bytes()
    end = content.index(b'"consolidated_metadata"')
    refusals = 0  # a flip in a number of seconds, for one, is none
    for bit in some_bits(content[:end], kind, 3 * FLIPS):
        (store / "zarr.json").write_bytes(flipped(content, bit))
        found = outcome(values, store)
        assert found == right[kind] or isinstance(found, StoreError), (bit, found)
        refusals += found != right[kind]
    assert refusals >= FLIPS


@pytest.mark.parametrize("seed", range(4))
def test_the_same_call_with_a_flipped_bit_in_the_group_refuses_or_changes_nothing(
    copied, whole, right, seed
):
    store = copied("top")
    content = (store / "zarr.json").read_bytes()
    (bit,) = some_bits(content, seed, 1)
    (store / "zarr.json").write_bytes(flipped(content, bit))
    again = outcome(partial(run, store, **KINDS["top"]))
    assert isinstance(again, StoreError | InfluenceRun), again
    assert [
        n for n in chunks(store) if (store / n).read_bytes() != (whole / "top" / n).read_bytes()
    ] == []


def test_damaged_metadata_of_intermediate_results_are_made_again(tmp_path):
    run(tmp_path / "whole.zarr", memory=TIGHT["recompute"])
    store = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        run(store, Interrupt(50), memory=TIGHT["recompute"])
    files = list(store.glob("work/**/zarr.json"))
    assert len(files) >= 2  # the premise
    for i, file in enumerate(files):
        put(file, [b"{", None][i % 2])
    run(store, memory=TIGHT["recompute"])
    assert_same(store, tmp_path / "whole.zarr")
    assert not (store / "work").exists()


@pytest.mark.parametrize("name", ["scores", "train"])
def test_other_readers_are_not_handed_damaged_metadata(copied, name):
    store = copied("zarr")
    (store / name / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=f"'{name}'"):
        InfluenceRun(store).to_xarray()


@pytest.mark.parametrize("part", ["fingerprint", "plan", "columns"])
def test_what_was_computed_has_a_checksum(copied, right, part):
    store = copied("zarr")
    content = (store / "zarr.json").read_text()
    old = {"fingerprint": "0.1 of mean", "plan": '"self_tiles": ', "columns": '"train_label"'}[part]
    new = {"fingerprint": "0.2 of mean", "plan": '"self_tiles": 1', "columns": '"train_lapel"'}[
        part
    ]
    assert old in content  # the premise
    (store / "zarr.json").write_text(content.replace(old, new))
    with pytest.raises(StoreError, match=r"columns are not as they were written.* overwrite=True"):
        InfluenceRun(store)
    with pytest.raises(StoreError, match=r"columns are not as they were written.* overwrite=True"):
        run(store, **KINDS["zarr"])
    run(store, **KINDS["zarr"], overwrite=True)
    assert values(store) == right["zarr"]


def test_the_same_ids_in_another_type_are_the_same_run(tmp_path):
    ids = {"train": np.arange(N, dtype=np.int32)}
    run(tmp_path / "run.zarr", ids=ids, top_k=3)
    before = (tmp_path / "run.zarr/train/zarr.json").read_bytes()
    again = run(tmp_path / "run.zarr", ids={"train": np.arange(N)}, top_k=3)
    again.check()
    assert again.train_ids.tolist() == list(range(N))
    assert (tmp_path / "run.zarr/train/zarr.json").read_bytes() == before


# What no run says of itself

WRONG = [
    ("plan", "a text"),
    ("fingerprint", []),
    ("seconds", None),
    ("seconds", {"scores": "long"}),
    ("seconds", {"scores": float("nan")}),
    ("complete", "yes"),
    ("gradients", -1),
    ("gradients", True),
    ("versions", ["zarr"]),
    ("created", 2026),
    ("method", {}),
    ("rows_in", 3),
    ("columns", {"train": "int64"}),
    ("columns", {"train": "int64", "test": "int64", "train_../x": "int64"}),
    ("columns", {"train": "int64", "test": "complex128"}),
    ("columns", {"train": "int64", "test": ["string"]}),
    ("extras", ["scores"]),
    ("checksum", 12),
    ("fingerprint.method", "magic"),
    ("fingerprint.method", ["DataInf"]),
    ("fingerprint.dtype", "float128"),
    ("fingerprint.dtype", {}),
    ("fingerprint.blocks", {}),
    ("fingerprint.blocks", {"layers.0": "weight"}),
    ("fingerprint.top_k", 0),
    ("fingerprint.top_k", "3"),
    ("fingerprint.by_block", 1),
    ("fingerprint.query groups", 7),
    ("fingerprint.run metadata", "none"),
    ("fingerprint.test samples", 2**60),
    ("plan.n", 23.0),
    ("plan.n", True),
    ("plan.m", 0),
    ("plan.train_tile", -6),
    ("plan.train_tile", 24),
    ("plan.columns", 10**9),
    ("plan.rows", "cloud"),
    ("plan.rows", []),
    ("plan.pieces", []),
    ("plan.pieces", [[1, 20]]),
    ("plan.pieces", [[2, 43]]),
    ("plan.pieces", [[2, 44], [0, 0]]),
    ("plan.pieces", [[1, 20], [1.0, 24]]),
    ("plan.pieces", [[3, 20], [-1, 24]]),
    ("plan.pieces", [[2, 44, 1]]),
    ("plan.pieces", 44),
    ("plan.pieces", [2, 44]),
]


def rewritten(store, changes, without=()):
    """Changes attributes as somebody would who knows the format, checksum included."""
    content = json.loads((store / "zarr.json").read_text())
    attributes = content["attributes"]
    for path, value in changes.items():
        *parents, name = path.split(".", 1)
        place = attributes[parents[0]] if parents else attributes
        place[name] = value
    attributes["checksum"] = changes.get("checksum", sealed_attributes(attributes)["checksum"])
    for name in without:
        del attributes[name]
    (store / "zarr.json").write_text(json.dumps(content))
    return attributes


def assert_refused(store, match):
    for command in ("info", "top"):
        assert re.search(match, " ".join(refused(command, store).split()))
    with pytest.raises(StoreError, match=match):
        run(store, **KINDS["zarr"])


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_attributes_that_no_run_has_are_refused_by_name(copied, name, value):
    store = copied("zarr")
    rewritten(store, {name: value})
    assert_refused(store, rf"attributes of .*run\.zarr.*{name.rpartition('.')[2]}.*zarr\.json")


@pytest.mark.parametrize(
    "name", ["seconds", "complete", "plan", "versions", "rows_in", "columns", "checksum"]
)
def test_attributes_that_are_missing_are_refused_by_name(copied, name):
    store = copied("zarr")
    rewritten(store, {}, without=[name])
    assert_refused(store, f"{name} is missing")


@pytest.mark.parametrize("version", [1, 3])
def test_a_version_is_refused_whatever_wrote_it(copied, version):
    store = copied("zarr")
    rewritten(store, {"format_version": version, "versions": []})
    assert f"format version {version}" in refused("info", store)


ABSURD = {
    "many samples": {"plan.n": 10**15, "fingerprint.training samples": 10**15},
    "many queries": {"plan.m": 10**15, "fingerprint.test samples": 10**15},
    "small chunks": {
        "plan.n": 10**6,
        "plan.m": 10**6,
        "fingerprint.training samples": 10**6,
        "fingerprint.test samples": 10**6,
        "plan.test_tile": 1,
        "plan.train_tile": 1,
    },
    "one large chunk": {
        "plan.n": 4 * 10**8,
        "plan.train_tile": 4 * 10**8,
        "fingerprint.training samples": 4 * 10**8,
    },
    "many parameters": {"plan.n_parameters": 10**15, "plan.pieces": [[2, 10**15]]},
}


@pytest.fixture
def absurd(copied):
    """A store whose attributes and arrays agree on what nobody could store."""

    def make(changes):
        store = copied("zarr")
        attributes = rewritten(store, changes)
        for name, layout in arrays_said(attributes).items():
            (store / name / "zarr.json").unlink(missing_ok=True)
            zarr.create_array(store, zarr_format=3, **layout.settings(name))
        return store

    return make


def test_premise_the_same_sizes_make_the_same_store(absurd, whole, right):
    store = absurd({})
    for file in store.glob("*/**/zarr.json"):
        own, theirs = (
            json.loads(f.read_text()) for f in (file, whole / "zarr" / file.relative_to(store))
        )
        assert {**own, "attributes": {}} == {**theirs, "attributes": {}}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_keep_nobody_waiting(absurd, case, tmp_path):
    store = absurd(ABSURD[case])
    with pytest.raises(
        StoreError, match=r"missing or damaged chunks: (.* more|rows/0/c)|'approximation'"
    ):
        InfluenceRun(store).check()
    for command in (
        ["info"],
        ["top"],
        ["top", "--test", "0"],
        ["report", "-o", tmp_path / "page.html"],
    ):
        result = invoke(*command, store)
        assert isinstance(result.exception, SystemExit | None), result.exception
        # What is there of the means is there; the rest is missing by its name.
        assert result.exit_code == 0 or re.search(
            r"missing or damaged|'approximation'", result.stderr
        )


@pytest.mark.timeout(60)
def test_arrays_with_other_sizes_than_those_of_their_run_are_refused_by_name(copied):
    store = copied("zarr")
    for name, size in (("scores", 10**6), ("mean_influence", 10**15), ("train", 10**15)):
        file = store / name / "zarr.json"
        before, content = (json.loads(file.read_text()) for _ in range(2))
        content["shape"] = [size] * len(content["shape"])
        content["chunk_grid"]["configuration"]["chunk_shape"] = [1] * len(content["shape"])
        file.write_text(json.dumps(content))
        with pytest.raises(StoreError, match=f"'{name}'.*not laid out as its run says"):
            InfluenceRun(store).check()
        assert f"'{name}'" in refused("info", store)
        file.write_text(json.dumps(before))


# Chunks that expand


def with_size(frame, size):
    """A zstd frame that says that it expands to so many bytes."""
    return frame[:4] + bytes([0b11100000]) + size.to_bytes(8, "little") + frame[6:]


def checked(frame):
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


def test_premise_the_size_in_a_frame_is_that_of_its_content():
    for length in (0, 1, 255, 256, 65_791, 65_792, 10**6):
        assert expanded_size(bytes(Zstd(1).encode(bytes(length)))[:18]) == length
    assert expanded_size(with_size(bytes(Zstd(1).encode(b"abc")), 2**40)[:18]) == 2**40
    assert expanded_size(b"no frame at all") is None


@pytest.mark.parametrize("size", [2**31 + 8, 2**50])
@pytest.mark.parametrize("key", ["mean_influence/c/0", "scores/c/0/0", "train_label/c/0"])
def test_a_chunk_that_expands_beyond_its_size_is_refused_before_it_does(copied, key, size):
    store = copied("zarr")
    (store / key).write_bytes(checked(with_size(bytes(Zstd(1).encode(bytes(64))), size)))
    with pytest.raises(StoreError, match=key):
        InfluenceRun(store).check()
    array = zarr.open_array(ChunkGuard(LocalStore(store), None), path=key.split("/c/")[0], mode="r")
    with pytest.raises(ValueError, match=f"would expand to {size:,}"):
        array[...]


def test_a_small_chunk_that_fills_the_memory_is_refused(copied, absurd):
    store = absurd(ABSURD["one large chunk"])
    frame = checked(with_size(bytes(Zstd(1).encode(bytes(64))), 8 * 4 * 10**8))
    (store / "mean_influence/c/0").write_bytes(frame)
    with pytest.raises(StoreError, match="mean_influence/c/0") as caught:
        InfluenceRun(store).mean_influence()
    assert "would expand to 3,200,000,000" in str(caught.value.__cause__)


def test_positions_that_there_are_not_are_refused(copied):
    store = copied("top")
    zarr.open_array(store, path="top", mode="r+")[0, 0, 0] = N
    with pytest.raises(StoreError, match=r"'top'.*positions"):
        InfluenceRun(store).top(3)
