"""What the store of a run keeps to at every place that Zarr writes to, as a class of tests.

Damaged metadata are in results/test_damaged_metadata.py, and writers that get in each other's way
in runner/test_stopped_writers.py.
"""

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pydvl_datainf import StoreError, StoreExistsError
from pydvl_datainf.results.arrays import Layout
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import FORMAT, FORMAT_VERSION, Stored

SHAPE, CHUNKS, AXES = (5, 3), (2, 3), ("x", "y")
"""Three chunks, the last one shorter."""
VALUES = np.arange(15.0).reshape(SHAPE) / 7
ATTRIBUTES = {"writer": "first", "checksum": "c0ffee", "complete": False, "plan": {"n": [5, None]}}
LAYOUT = SHAPE, CHUNKS, "float64", AXES
TEXTS = np.array(["", "ä€\n", "x" * 99, "0"], dtype=object)

SHORT = {
    "a": ("float64", VALUES[:4, 1]),
    "rows/a": ("float32", VALUES[:4, 1].astype("float32")),
    "train_label": ("int64", np.arange(4)),
    "train_text": ("string", TEXTS),
}
"""Arrays of four entries in two chunks, compressed or not."""

WRITES = {
    "create": lambda store: store.create(ATTRIBUTES),
    "require": lambda store: store.require("b", *LAYOUT),
    "write": lambda store: store.write("a", slice(0, 2), 0 * VALUES[:2]),
    "label": lambda store: store.label("a", {"n": 3}),
    "update": lambda store: store.update({"n": 3}),
    "delete": lambda store: store.delete("a"),
    "finish": lambda store: store.finish([]),
}
WRITES_OF_ONE = {name: write for name, write in WRITES.items() if name != "create"}


def files_of(store):
    """What Zarr writes to, without the package."""
    return zarr.open_group(store.location, mode="r+", use_consolidated=False).store


def bytes_of(store, key):
    return sync(files_of(store).get(key, default_buffer_prototype())).to_bytes()


def put(store, key, content):
    buffer = default_buffer_prototype().buffer.from_bytes(content)
    sync(files_of(store).set(key, buffer))


def flipped(content):
    """With one bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES = {
    "flipped": flipped,
    "cut": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "longer": lambda content: content + b"\0",
}


def contents(store):
    """What a new reader finds."""
    fresh = Stored(store.location)
    names = fresh.names()
    return fresh.attributes, names, fresh.array("a").attrs.asdict(), fresh.read("a").tobytes()


class StoreContract:
    """Subclasses tell the place where the store is: `place(folder)`."""

    def place(self, folder):
        raise NotImplementedError

    @pytest.fixture
    def vacant(self, tmp_path):
        return Store(self.place(tmp_path))

    @pytest.fixture
    def store(self, vacant):
        """A run with one array, whose chunks are all there."""
        vacant.create(ATTRIBUTES)
        vacant.require("a", *LAYOUT)
        vacant.write("a", ..., VALUES)
        return vacant

    # The group

    def test_begins_vacant_and_holds_what_it_was_made_with(self, vacant):
        assert vacant.is_vacant()
        with pytest.raises(StoreError, match=r"no store at|holds no Zarr group"):
            vacant.attributes  # noqa: B018
        vacant.create(ATTRIBUTES)
        assert not vacant.is_vacant()
        marks = {"format": FORMAT, "format_version": FORMAT_VERSION}
        assert Store(vacant.location).attributes == marks | ATTRIBUTES
        assert vacant.writer == "first"

    def test_takes_the_place_of_a_run(self, store):
        store.create({"writer": "second"})
        assert "a" not in store
        assert store.present("a") == set()
        assert "plan" not in Store(store.location).attributes

    def test_refuses_and_keeps_what_is_not_a_run(self, vacant):
        zarr.create_group(vacant.location, attributes={"format": "of others"})
        with pytest.raises(StoreError, match="not a run of this package"):
            vacant.attributes  # noqa: B018
        with pytest.raises(StoreExistsError, match="never replaced"):
            vacant.is_vacant()

    @pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1, None, "2"])
    def test_refuses_other_formats_and_names_who_wrote_them(self, store, version):
        store.update({"format_version": version, "versions": {"pydvl-datainf": "0.0.7"}})
        for refused in (lambda: store.attributes, store.is_vacant):
            with pytest.raises(
                StoreError, match=rf"format version {version}.*wrote it \(0\.0\.7\)"
            ):
                refused()

    def test_changes_attributes_of_the_group_and_of_an_array(self, store):
        store.update({"plan": {"n": 6}})
        store.label("a", {"unit": "loss"})
        fresh = Stored(store.location)
        assert fresh.attributes["plan"] == {"n": 6}
        assert fresh.attributes["checksum"] == "c0ffee"
        assert fresh.attributes_of("a")["unit"] == "loss"

    def test_finished_runs_have_metadata_that_other_programs_read_at_once(self, store):
        assert store.not_as_consolidated(["a"]) == ["a"]
        store.finish(["a"])
        assert store.attributes["complete"] is True
        assert store.attributes["extras"] == ["a"]
        assert store.not_as_consolidated(["a"]) == []
        group = zarr.open_group(store.location, mode="r", use_consolidated=True)
        np.testing.assert_array_equal(group["a"][...], VALUES)
        store.update({"n": 3})
        assert store.not_as_consolidated(["a"]) == []
        store.label("a", {"unit": "loss"})
        assert store.not_as_consolidated(["a"]) == ["a"]

    # Arrays

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "bool"])
    @pytest.mark.parametrize("name", ["a", "rows/a", "work/a"])
    def test_reads_what_was_written_bit_by_bit(self, vacant, name, dtype):
        vacant.create(ATTRIBUTES)
        vacant.require(name, SHAPE, CHUNKS, dtype, AXES)
        values = (VALUES * 3 - 2).astype(dtype)
        for start in (4, 0, 2):
            vacant.write(name, slice(start, start + 2), values[start : start + 2])
        fresh = Stored(vacant.location)
        assert fresh.read(name).dtype == dtype
        assert fresh.read(name).tobytes() == values.tobytes()
        np.testing.assert_array_equal(fresh.read(name, (slice(1, 4), 2)), values[1:4, 2])
        np.testing.assert_array_equal(fresh.read(name, (..., slice(0, 2))), values[:, :2])
        assert fresh.array(name).metadata.dimension_names == AXES

    @pytest.mark.parametrize("values", [VALUES[:1], VALUES[:2, :1], VALUES[0], VALUES[:3]])
    def test_refuses_values_of_another_shape_which_zarr_would_repeat(self, store, values):
        before = contents(store)
        with pytest.raises(ValueError, match=r"'a' takes \(2, 3\)"):
            store.write("a", slice(0, 2), values)
        assert contents(store) == before

    def test_reads_texts_as_they_were(self, vacant):
        vacant.create(ATTRIBUTES)
        vacant.require("train_text", (4,), (3,), "string", ("train",))
        vacant.write("train_text", ..., TEXTS)
        assert Store(vacant.location).read("train_text").tolist() == TEXTS.tolist()
        assert vacant.is_whole("train_text")

    def test_arrays_that_are_required_again_keep_their_chunks(self, store):
        store.require("a", *LAYOUT)
        assert Store(store.location).require("a", *LAYOUT)[...].tobytes() == VALUES.tobytes()

    @pytest.mark.parametrize(
        "layout",
        [
            ((6, 3), CHUNKS, "float64", AXES),
            (SHAPE, (3, 3), "float64", AXES),
            (SHAPE, CHUNKS, "float32", AXES),
            (SHAPE, CHUNKS, "float64", ("x", "z")),
            (SHAPE, CHUNKS, "float64", None),
        ],
        ids=["shape", "chunks", "dtype", "dimensions", "no dimensions"],
    )
    def test_arrays_laid_out_otherwise_are_refused_or_made_anew(self, store, layout):
        fresh = Store(store.location)
        fresh.layouts = {"a": Layout(*layout)}
        with pytest.raises(StoreError, match=r"'a' in .* is not laid out as its run says"):
            fresh.array("a")
        fresh.require("a", *layout)
        assert Layout(*layout).is_that_of("a", fresh.array("a"))

    def test_intermediate_results_laid_out_otherwise_lose_their_chunks(self, store):
        store.require("work/a", *LAYOUT)
        store.write("work/a", ..., VALUES)
        store.require("work/a", (6, 3), CHUNKS, "float64", AXES)
        assert store.present("work/a") == set()

    def test_arrays_that_there_are_not_are_named(self, store):
        with pytest.raises(StoreError, match=r"has no array 'b'.*Call run_influences again"):
            store.array("b")
        assert "b" not in store
        assert store.sound("b") == set()
        assert not store.is_whole("b")

    def test_deletes_arrays_and_groups_of_them(self, store):
        for name in ("rows/a", "rows/b", "row"):
            store.require(name, *LAYOUT)
        store.delete("rows")
        assert "rows/a" not in store
        assert "row" in store
        store.delete("a")
        assert "a" not in store
        assert store.present("a") == set()
        with pytest.raises(StoreError, match="no array 'a'"):
            store.read("a")

    # What is there

    def test_knows_what_is_there(self, vacant):
        vacant.create(ATTRIBUTES)
        vacant.require("a", *LAYOUT)
        assert (vacant.count("a"), vacant.present("a")) == (3, set())
        assert vacant.expected("a") == {(0, 0), (1, 0), (2, 0)}
        vacant.write("a", slice(2, 4), VALUES[2:4])
        assert vacant.present("a") == vacant.sound("a") == {(1, 0)}
        assert (vacant.has("a", (1, 0)), vacant.has("a", (0, 0))) == (True, False)
        assert vacant.lacking("a") == ([(0, 0), (2, 0)], 2)
        assert not vacant.is_whole("a")
        np.testing.assert_array_equal(vacant.read("a", slice(2, 4)), VALUES[2:4])
        for refused in (lambda: vacant.read("a"), lambda: vacant.check_present("a")):
            with pytest.raises(StoreError, match=r"2 missing or damaged chunks: a/c/0/0, a/c/2/0"):
                refused()

    @pytest.mark.parametrize("name", SHORT)
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_chunk_is_named_and_the_others_are_read(self, vacant, name, damage):
        dtype, values = SHORT[name]
        vacant.create(ATTRIBUTES)
        vacant.require(name, (4,), (3,), dtype, ("x",))
        vacant.write(name, ..., values)
        assert vacant.is_whole(name)
        put(vacant, f"{name}/c/0", DAMAGES[damage](bytes_of(vacant, f"{name}/c/0")))
        fresh = Store(vacant.location)
        assert (fresh.present(name), fresh.sound(name)) == ({(0,), (1,)}, {(1,)})
        for refused in (lambda: fresh.read(name), lambda: fresh.check([name])):
            with pytest.raises(
                StoreError, match=rf"1 missing or damaged chunks: {name}/c/0\. Call"
            ):
                refused()
        assert fresh.read(name, slice(3, 4)).tolist() == values[3:].tolist()
        fresh.check_present(name)  # reads none
        fresh.write(name, slice(0, 3), values[:3])
        assert fresh.read(name).tolist() == values.tolist()

    def test_a_missing_chunk_is_named_and_never_read_as_the_fill_value(self, store):
        store.require("train_label", (4,), (3,), "int64", ("train",))
        store.write("train_label", ..., np.arange(4))
        for key in ("a/c/1/0", "train_label/c/1"):
            sync(files_of(store).delete(key))
        for name, key in (("a", "a/c/1/0"), ("train_label", "train_label/c/1")):
            with pytest.raises(StoreError, match=rf"1 missing or damaged chunks: {key}\. Call"):
                store.read(name)
        with pytest.raises(StoreError, match="2 missing or damaged chunks: a/c/1/0, train_label"):
            store.check(["a", "train_label"])

    @pytest.mark.parametrize(
        ("name", "dtype"), [("rows/a", "float64"), ("train_number", "float32")]
    )
    def test_chunks_that_equal_the_fill_value_are_written(self, vacant, name, dtype):
        """Elsewhere NaN is what a chunk that is not there would be read as."""
        vacant.create(ATTRIBUTES)
        vacant.require(name, (4,), (3,), dtype, ("x",))
        assert np.isnan(vacant.array(name).fill_value)
        vacant.write(name, ..., np.full(4, np.nan))
        assert vacant.present(name) == {(0,), (1,)}

    def test_integers_that_equal_the_fill_value_are_written(self, vacant):
        vacant.create(ATTRIBUTES)
        vacant.require("a", (4,), (3,), "int64", ("x",))
        vacant.write("a", ..., np.zeros(4))
        assert vacant.is_whole("a")
        assert vacant.read("a").tolist() == [0, 0, 0, 0]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_computed_numbers_must_be_finite_and_columns_need_not(self, store, value):
        wrong = VALUES.copy()
        wrong[3, 1] = value
        for name in ("train_number", "test_number"):
            store.require(name, *LAYOUT)
            store.write(name, ..., wrong)
            assert store.is_whole(name)
        store.write("a", ..., wrong)
        assert store.sound("a") == {(0, 0), (2, 0)}
        with pytest.raises(StoreError, match=r"1 missing or damaged chunks: a/c/1/0\. Call"):
            store.check(["train_number", "a"])

    def test_ten_of_many_missing_chunks_are_named(self, vacant):
        vacant.create(ATTRIBUTES)
        vacant.require("a", (25,), (1,), "float32", ("x",))
        with pytest.raises(StoreError, match=r"25 missing .* a/c/9 and 15 more\. Call"):
            vacant.check(["a"])

    def test_what_a_killed_writer_left_is_no_chunk(self, store):
        for key in ("a/c/0/0.0123.partial", "a/c/00/0", "a/c/x", "ab/c/0/0"):
            put(store, key, b"half")
        assert store.present("a") == {(0, 0), (1, 0), (2, 0)}

    # Its writers

    @pytest.mark.parametrize("write", WRITES)
    def test_who_may_only_read_changes_nothing(self, store, write):
        before = contents(store)
        with pytest.raises(StoreError, match="is read-only"):
            WRITES[write](Store(store.group.store.with_read_only(True)))
        assert contents(store) == before
        WRITES[write](store)  # the control

    @pytest.mark.parametrize("write", WRITES_OF_ONE)
    def test_who_is_not_the_writer_changes_nothing(self, store, write):
        before = contents(store)
        with pytest.raises(StoreError, match="no longer the store of this run"):
            WRITES[write](Store(store.location, writer="second"))
        assert contents(store) == before
        WRITES[write](Store(store.location, writer="first"))  # the control
        WRITES[write](store)

    def test_who_takes_over_is_the_only_writer(self, store):
        second = Store(store.location)
        second.take_over("second")
        assert second.attributes["writer"] == "second"
        assert second.attributes["plan"] == ATTRIBUTES["plan"]
        with pytest.raises(StoreError, match="Let one call at a time work on a store"):
            store.write("a", ..., VALUES)
        second.write("a", ..., 2 * VALUES)
        np.testing.assert_array_equal(second.read("a"), 2 * VALUES)

    def test_who_reads_is_told_that_the_run_was_replaced(self, store):
        reader = Stored(store.location)
        reader.checksum = "c0ffee"
        np.testing.assert_array_equal(reader.read("a"), VALUES)
        store.create({"writer": "second", "checksum": "beef"})
        store.require("a", *LAYOUT)
        store.write("a", ..., 0 * VALUES)
        for refused in (reader.check_same_run, lambda: reader.read("a"), lambda: reader.check([])):
            with pytest.raises(StoreError, match="was replaced, or deleted, after it was opened"):
                refused()

    def test_is_the_same_place_to_another_store(self, store):
        assert Store(store).location is store.location
        assert store.holds(Store(store.location))
