"""Plans: every sample is in one tile and one piece, and what is planned fits in memory."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from pydvl_datainf.errors import PlanError
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.results.plan import Plan, Tiling
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.batched_data import BatchIndex, cut_batches
from pydvl_datainf.runner.choices import planned
from pydvl_datainf.runner.cutting import TRANSIT_SHARE, fits_at_once, make_plan
from pydvl_datainf.runner.executors import InProcess
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.sizing import (
    CHUNKS_IN_TRANSIT,
    DECODED_SHARE,
    RunSize,
    sampled_queries,
)
from pydvl_datainf.runner.train_side import NewRows

sizes = st.integers(1, 2000)


def flat(slices):
    return [i for part in slices for i in range(part.start, part.stop)]


@given(total=sizes, size=sizes)
def test_a_tiling_covers_everything_once(total, size):
    tiling = Tiling(total, size)
    assert flat(tiling) == list(range(total))
    assert len(list(tiling)) == len(tiling)
    assert all(part.stop - part.start == size for part in list(tiling)[:-1])


@given(lengths=st.lists(st.integers(1, 9), min_size=1), step=st.integers(1, 12), data=st.data())
def test_pieces_are_the_wanted_samples_in_order(lengths, step, data):
    n = sum(lengths)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    offsets = [sum(lengths[:b]) for b in range(len(lengths))]
    found = list(cut_batches(lengths, slice(start, stop), step))
    assert [offsets[b] + i for b, a, z in found for i in range(a, z)] == list(range(start, stop))
    assert all(0 < z - a <= step for _, a, z in found)


tasks = st.builds(
    RunSize,
    n=sizes,
    m=st.integers(1, 300),
    m_samples=st.integers(300, 3000),
    widths=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    itemsize=st.sampled_from([4, 8]),
    longest=st.integers(1, 64),
    method=st.sampled_from(list(METHODS.values())),
    by_block=st.booleans(),
    top_k=st.none() | st.integers(1, 50),
    moments=st.sampled_from([0, 50_000]),
)


@pytest.mark.parametrize("narrow", [8, 520])
def test_decoded_rows_of_narrow_blocks_count_beside_a_wide_one(narrow):
    n, wide, memory = 2000, 8192, 80 * 2**20
    asked = RunSize(n, 10**5, 10**5, (narrow, wide), 4, 32, METHODS["DataInf"])
    plan = make_plan(asked, memory=memory, rows="zarr", tile=(32, None))
    decoded, read = 8 * n * narrow, 2 * n * wide + CHUNKS_IN_TRANSIT * 2 * plan.train_tile * wide
    assert decoded <= plan.held // DECODED_SHARE < 8 * n * wide
    # Of a query its gradient, what the inverse adds up for it, what it gives, and its scores.
    each = 8 * (4 * wide + n + 2 * plan.train_tile + 2 * plan.chunk)
    most = (memory - memory // TRANSIT_SHARE - read - decoded - 3 * plan.chunk * wide * 8) // each
    assert plan.group_tiles == most // 32


@settings(deadline=None)
@given(task=tasks, memory=st.integers(10_000, 10**8), rows=st.sampled_from(["zarr", "recompute"]))
def test_a_plan_covers_all_scores_and_spans(task, memory, rows):
    try:
        plan = make_plan(task, memory=memory, rows=rows)
    except PlanError as refused:
        smallest = int(str(refused).split("memory=")[1].split(".")[0].replace(",", ""))
        assert smallest > memory
        plan = make_plan(task, memory=smallest, rows=rows)
    assert flat(plan.train) == list(range(task.n))
    assert flat(plan.test) == list(range(task.m))
    assert flat(plan.groups) == list(range(len(plan.test)))
    assert flat(plan.spans) == list(range(len(plan.train)))
    assert flat(plan.group(q) for q in range(len(plan.groups))) == list(range(task.m))
    assert 1 <= plan.step <= task.longest
    assert Plan.from_attributes(json.loads(json.dumps(plan.as_attributes()))) == plan
    assert [sum(counts) for counts in zip(*plan.pieces, strict=True)] == [
        len(task.widths),
        sum(task.widths),
    ]


@given(task=tasks, memory=st.integers(10**7, 10**8))
def test_vectors_and_corrections_of_a_group_fit(task, memory):
    task = replace(task, method=METHODS["DataInf"])
    plan = make_plan(task, memory=memory, rows="recompute")
    queries = plan.group(0).stop
    assert 2 * queries * task.row + plan.step * task.row <= memory


def test_a_plan_depends_on_nothing_but_its_arguments():
    task = RunSize(
        n=1000, m=10, m_samples=10, widths=(7, 9), itemsize=4, longest=32, method=METHODS["DataInf"]
    )
    assert make_plan(task, memory=10**6, rows="zarr") == make_plan(task, memory=10**6, rows="zarr")


def test_rows_that_do_not_fit_are_not_kept():
    task = RunSize(
        n=1000, m=10, m_samples=10, widths=(100,), itemsize=4, longest=32, method=METHODS["DataInf"]
    )
    assert fits_at_once(task, 10**6)
    assert not fits_at_once(task, 10**5)
    assert not fits_at_once(task, 10)


def test_pieces_of_a_tile_are_whole_batches_by_default():
    task = RunSize(
        n=10_000,
        m=10,
        m_samples=10,
        widths=(100,),
        itemsize=4,
        longest=32,
        method=METHODS["DataInf"],
    )
    plan = make_plan(task, memory=2**31, rows="recompute")
    assert plan.train_tile % 32 == 0
    assert plan.step == 32


def test_a_batch_size_bounds_the_pieces():
    task = RunSize(
        n=100, m=10, m_samples=10, widths=(100,), itemsize=4, longest=32, method=METHODS["DataInf"]
    )
    assert make_plan(task, memory=2**31, rows="recompute", batch_size=5).step == 5


@pytest.mark.parametrize("tile", [(0, 1), (1, -1), (1.5, 1), (True, 1)])
def test_tiles_must_be_positive_numbers(tile):
    task = RunSize(
        n=100, m=10, m_samples=10, widths=(100,), itemsize=4, longest=32, method=METHODS["DataInf"]
    )
    with pytest.raises(PlanError, match="positive number"):
        make_plan(task, memory=2**31, rows="recompute", tile=tile)


# What the exact inverse takes, and what is compared with it


@given(task=tasks, samples=st.integers(1, 3000))
def test_samples_are_spread_over_the_tiles_and_each_is_taken_once(task, samples):
    plan = make_plan(task, memory=10**9, rows="recompute")
    found, wanted = plan.sampled(samples), min(samples, task.n)
    tiles = [j for j, _ in found]
    assert tiles == sorted(set(tiles))
    assert set(tiles) <= set(range(len(plan.train)))
    assert all(1 <= k <= plan.train[j].stop - plan.train[j].start for j, k in found)
    total, most = sum(k for _, k in found), max(k for _, k in found)
    assert wanted - most < total < wanted + len(found)  # about as many; the last tile is shorter
    gaps = {b - a for a, b in pairwise(tiles)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(task=tasks, more=st.integers(0, 10))
def test_as_many_samples_as_there_are_mean_all(task, more):
    plan = make_plan(task, memory=10**9, rows="recompute")
    assert sum(k for _, k in plan.sampled(task.n + more)) == task.n


@given(m=sizes)
def test_sampled_queries_are_in_order_and_few(m):
    found = sampled_queries(m)
    taken = flat(found)
    assert taken == sorted(set(taken))
    assert set(taken) <= set(range(m))
    assert len(taken) <= 32
    assert len(found) <= 4


@given(m=st.integers(1, 32))
def test_up_to_32_queries_are_all_taken(m):
    assert flat(sampled_queries(m)) == list(range(m))


def test_the_gradients_of_a_given_tile_of_queries_count_in_all_blocks():
    """A piece of blocks takes little of them, but they are computed all at once."""
    asked = RunSize(
        n=256,
        m=64,
        m_samples=64,
        widths=(4_000,) * 32,
        itemsize=4,
        longest=32,
        method=METHODS["DataInf"],
    )
    with pytest.raises(PlanError, match="the smallest that works") as refused:
        make_plan(asked, memory=64 * asked.row, rows="zarr", tile=(64, None))
    smallest = int(re.search("memory=([0-9,]+), for", str(refused.value))[1].replace(",", ""))
    plan = make_plan(asked, memory=smallest, rows="zarr", tile=(64, None))
    assert len(plan.pieces) > 8  # the premise
    assert smallest < 1.5 * 64 * asked.row  # nor do they count more than once
    make_plan(asked, memory=64 * asked.row, rows="zarr")  # the control: smaller tiles


def test_what_the_exact_inverse_takes_counts():
    exact = METHODS["exact"]
    task = RunSize(
        n=1000, m=100, m_samples=100, widths=(1536,), itemsize=4, longest=32, method=exact
    )
    needed = exact.bytes(1000, 1, 1536)
    with pytest.raises(PlanError, match=f"Of these the exact inverse takes {needed:,}"):
        make_plan(task, memory=needed, rows="zarr")


def test_queries_that_do_not_fit_together_are_solved_in_groups():
    """Premise: a plan has several groups of them; each is solved by itself."""
    task = RunSize(
        n=100,
        m=10**6,
        m_samples=10**6,
        widths=(64, 64),
        itemsize=4,
        longest=32,
        method=METHODS["DataInf"],
    )
    memory = 10**8
    plan = make_plan(task, memory=memory, rows="zarr")
    assert len(plan.groups) > 1


def test_chunks_of_vectors_are_even():
    """An array's last chunk is stored as long as the others, whatever of it is used."""
    task = RunSize(
        n=400,
        m=80,
        m_samples=80,
        widths=(1536,) * 48,
        itemsize=4,
        longest=32,
        method=METHODS["DataInf"],
    )
    plan = make_plan(task, memory=2**31, rows="zarr")
    chunks = -(-plan.n_parameters // plan.columns)
    assert chunks > 1
    assert chunks * plan.columns - plan.n_parameters < chunks
    assert plan.columns * plan.test_tile * task.itemsize <= 2**24


# Where rows are kept by default


def rows_of(n, store, **settings):
    model = SimpleNamespace(
        method=METHODS["DataInf"],
        widths={"a": 3},
        dtype="float32",
        batch_size=None,
        layers={},
        curvature={},
    )
    training, tests = NewRows(BatchIndex([32] * (n // 32) + [n % 32], [])), BatchIndex([5], [])
    wishes, executor = RunOptions(**settings), InProcess(progress=False)
    return planned(model, wishes, 5, tests, training, executor, Store(store)).rows


def test_few_gradients_stay_in_memory_and_more_go_to_the_disk(tmp_path):
    """Since a stop loses those in memory. Their number counts, whatever their size and speed."""
    assert rows_of(2_000, tmp_path / "run.zarr") == "memory"
    assert rows_of(2_001, tmp_path / "run.zarr") == "zarr"
    assert rows_of(2_001, tmp_path / "run.zarr", rows="memory") == "memory"


def test_where_there_is_no_room_on_disk_they_stay_in_memory(tmp_path, monkeypatch):
    assert rows_of(2_001, MemoryStore()) == "memory"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_001 * 3 * 4 - 1)
    )
    assert rows_of(2_001, tmp_path / "run.zarr") == "memory"
    assert rows_of(2_001, tmp_path / "run.zarr", memory=20_000) == "recompute"
