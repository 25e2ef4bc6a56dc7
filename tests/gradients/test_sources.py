"""Where rows come from more than once."""

import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import dense
from pydvl_datainf import BatchError, SourceError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import gradient_engine, sources
from pydvl_datainf.gradients.compressed import read_compressed
from pydvl_datainf.gradients.sources import (
    MemoryRows,
    Reader,
    RecomputedRows,
    has_fixed_order,
    read_rows,
)
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.objectives import OutputLoss
from pydvl_datainf.vectors import length

DATA = TensorDataset(torch.randn(7, 3), torch.randn(7, 2))

SPLITS = {"one batch": [7], "unequal last": [3, 3, 1], "ones": [1] * 7, "unequal": [1, 4, 2]}


def reader(data, **kwargs):
    model = nn.Linear(3, 2)
    blocks = Blocks.from_model(model, "module")
    engine = gradient_engine("auto", model, OutputLoss(nn.functional.mse_loss), blocks)
    return Reader(data, engine, torch.device("cpu"), **kwargs)


def all_rows(source):
    return torch.cat([rows[""] for rows in source.chunks()])


class RowSourceContract:
    """Subclasses define `source(reader)`."""

    def read(self, sizes, **kwargs):
        """A source of batches of some sizes, and the rows of one backward pass per sample."""
        torch.manual_seed(1)
        x, y = (tensor.double() for tensor in DATA.tensors)
        given = reader(list(zip(x.split(sizes), y.split(sizes), strict=True)), **kwargs)
        model = given.engine.model.double()
        names = [name for name, _ in model.named_parameters()]
        return self.source(given), dense.gradients(model, nn.functional.mse_loss, (x, y), names)

    @pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
    def test_yields_the_rows_of_all_samples_in_order_pass_after_pass(self, sizes):
        source, exact = self.read(sizes)
        assert source.n == 7
        for _ in range(3):
            assert [length(rows) for rows in source.chunks()] == sizes
            torch.testing.assert_close(all_rows(source), exact, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("size", "chunks"), [(1, [1] * 7), (3, [3, 1, 3]), (9, [4, 3])])
    def test_chunks_are_no_larger_than_the_batch_size(self, size, chunks):
        source, exact = self.read([4, 3], batch_size=size)
        assert [length(rows) for rows in source.chunks()] == chunks
        torch.testing.assert_close(all_rows(source), exact, rtol=1e-9, atol=1e-12)

    def test_a_pass_that_was_broken_off_does_not_change_the_next(self):
        source, exact = self.read([3, 4])
        next(source.chunks())
        torch.testing.assert_close(all_rows(source), exact, rtol=1e-9, atol=1e-12)

    def test_rows_have_no_graph_and_the_random_state_stays(self):
        source, _ = self.read([3, 4])
        before = torch.get_rng_state()
        assert not all_rows(source).requires_grad
        assert torch.equal(torch.get_rng_state(), before)

    def test_moves_to_a_device_as_a_source_of_its_own(self):
        source, exact = self.read([3, 4])
        moved = source.to(torch.device("cpu"))
        assert type(moved) is type(source)
        assert (moved.n, source.n) == (7, 7)
        for either in (moved, source):
            torch.testing.assert_close(all_rows(either), exact, rtol=1e-9, atol=1e-12)

    def test_pickles(self):
        source = self.source(reader(DataLoader(DATA, batch_size=3, num_workers=2)))
        copy = pickle.loads(pickle.dumps(source))
        assert copy.n == source.n
        assert torch.equal(all_rows(copy), all_rows(source))

    def test_norms_are_sums_over_samples(self):
        source, exact = self.read([3, 4])
        norms = sources.sum_norms(source)
        assert norms.n == 7
        assert norms.sums[""] == pytest.approx(float(exact.square().sum()), rel=1e-12)


class TestCompressed(RowSourceContract):
    """Of blocks that are not wider than the rank: rows are whole."""

    def source(self, reader):
        return read_compressed(reader, Compression(rank=50, basis_sample=3))[0]


class TestMemory(RowSourceContract):
    def source(self, reader):
        source, _ = read_rows(reader, "memory", need_norms=False)
        assert type(source) is MemoryRows
        return source

    def test_computes_no_row_again(self):
        """Whatever becomes of the model."""
        given = reader([DATA[:]])
        source = self.source(given)
        before = all_rows(source)
        given.engine.model.weight.data.zero_()
        assert torch.equal(all_rows(source), before)


class TestRecompute(RowSourceContract):
    def source(self, reader):
        source, _ = read_rows(reader, "recompute", need_norms=True)
        assert type(source) is RecomputedRows
        return source


class TestRecomputeWithoutNorms(RowSourceContract):
    def source(self, reader):
        source, norms = read_rows(reader, "recompute", need_norms=False)
        assert norms is None
        return source


@pytest.mark.parametrize(("keep", "most"), [("memory", 7), ("recompute", 1)])
def test_recomputed_rows_take_memory_for_one_chunk_only(keep, most):
    """Counts the chunks that are alive while a pass looks at each of seven."""
    source, _ = read_rows(reader(DataLoader(DATA, batch_size=1)), keep, need_norms=True)
    seen, alive = [], []
    for rows in source.chunks():
        seen.append(weakref.ref(rows[""]))
        alive.append(sum(ref() is not None for ref in seen))
    assert len(alive) == 7
    assert max(alive) == most


@pytest.mark.parametrize("keep", ["memory", "recompute", "auto"])
@pytest.mark.parametrize("need_norms", [True, False])
def test_empty_data_is_refused(keep, need_norms):
    with pytest.raises(SourceError, match="empty"):
        read_rows(reader([]), keep, need_norms=need_norms)


@pytest.mark.parametrize("data", [iter([DATA[:]]), (batch for batch in [DATA[:]])])
def test_data_that_can_be_read_only_once_is_refused(data):
    with pytest.raises(SourceError, match="only once"):
        read_rows(reader(data), "memory", need_norms=True)


@pytest.mark.parametrize("need_norms", [True, False])
def test_a_pass_of_another_length_is_refused(need_norms):
    data = [DATA[:3], DATA[3:]]
    source, _ = read_rows(reader(data), "recompute", need_norms=need_norms)
    data.pop()
    with pytest.raises(SourceError, match="3 samples where the first pass had 7"):
        list(source.chunks())


def test_bad_batches_are_found_although_nothing_is_computed_yet():
    with pytest.raises(BatchError):
        read_rows(reader([DATA[:], DATA[:][0]]), "recompute", need_norms=False)
    with pytest.raises(RuntimeError, match="shapes"):
        read_rows(reader([(torch.randn(2, 5), torch.randn(2, 2))]), "recompute", need_norms=False)


@pytest.mark.parametrize(("free", "kind"), [(10_000, MemoryRows), (800, RecomputedRows)])
def test_auto_keeps_rows_within_a_share_of_the_free_memory(monkeypatch, free, kind):
    """Premise: the rows take 7 samples x 8 parameters x 4 bytes = 224 bytes; a quarter is kept."""
    monkeypatch.setattr(sources, "_free_memory", lambda device: float(free))
    source, norms = read_rows(reader([DATA[:4], DATA[4:]]), "auto", need_norms=False)
    assert isinstance(source, kind)
    assert norms.n == 7


def test_free_memory_is_asked_of_the_system():
    assert sources._free_memory(torch.device("cpu")) > 2**20


def test_norms_of_the_first_pass_are_those_of_one_more():
    source, norms = read_rows(reader([DATA[:4], DATA[4:]]), "memory", need_norms=True)
    assert sources.sum_norms(source) == norms


def test_progress_bars_name_what_is_read(capsys):
    list(reader([DATA[:]], progress=True).rows())
    assert "gradients" in capsys.readouterr().err
    list(reader([DATA[:]]).rows())
    assert capsys.readouterr().err == ""


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*DATA.tensors, strict=True))


class EachTimeAnother:
    """A sampler of unknown type whose order changes."""

    def __init__(self):
        self.start = 0

    def __iter__(self):
        self.start += 1
        return iter([(i + self.start) % 7 for i in range(7)])

    def __len__(self):
        return 7


@pytest.mark.parametrize(
    ("data", "fixed"),
    [
        (DataLoader(DATA, batch_size=2), True),
        (DataLoader(DATA, batch_size=2, shuffle=True), False),
        (DataLoader(DATA, batch_size=None), True),
        (DataLoader(DATA, sampler=SequentialSampler(DATA)), True),
        (DataLoader(DATA, sampler=SubsetRandomSampler(range(5))), False),
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 7, 7)), False),
        (DataLoader(DATA, sampler=[3, 1, 2]), True),
        (DataLoader(DATA, batch_sampler=[[3, 1], [2]]), True),
        (DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 2, False)), False),
        (DataLoader(DATA, sampler=EachTimeAnother()), False),
        (DataLoader(Stream(), batch_size=2), True),
        ([DATA[:]], True),
    ],
)
def test_random_order_is_recognised(data, fixed):
    assert has_fixed_order(data) is fixed
