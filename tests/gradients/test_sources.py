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

from pydvl_datainf import BatchError, SourceError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import gradient_engine, sources
from pydvl_datainf.gradients.sources import (
    MemoryRows,
    Reader,
    RecomputedRows,
    has_fixed_order,
    read_rows,
)
from pydvl_datainf.objectives import OutputLoss

DATA = TensorDataset(torch.randn(7, 3), torch.randn(7, 2))


def reader(data, **kwargs):
    model = nn.Linear(3, 2)
    blocks = Blocks.from_model(model, "module")
    engine = gradient_engine("auto", model, OutputLoss(nn.functional.mse_loss), blocks)
    return Reader(data, engine, torch.device("cpu"), **kwargs)


def all_rows(source):
    return torch.cat([rows[""] for rows in source.chunks()])


class SourceContract:
    """What every source owes: subclass and define `source(reader)`."""

    def test_yields_the_rows_of_all_samples_in_order_pass_after_pass(self):
        data = DataLoader(DATA, batch_size=3)
        source = self.source(reader(data))
        expected = reader([DATA[:]])
        expected.engine.model.load_state_dict(self.model.state_dict())
        exact = all_rows(self.source(expected))
        assert source.n == 7
        for _ in range(2):
            torch.testing.assert_close(all_rows(source), exact)

    def test_moves(self):
        moved = self.source(reader([DATA[:]])).to(torch.device("cpu"))
        assert all_rows(moved).shape == (7, 8)

    def test_pickles(self):
        source = self.source(reader(DataLoader(DATA, batch_size=3, num_workers=2)))
        copy = pickle.loads(pickle.dumps(source))
        torch.testing.assert_close(all_rows(copy), all_rows(source))


class TestMemory(SourceContract):
    def source(self, reader):
        self.model = reader.engine.model
        return read_rows(reader, "memory", need_norms=False)[0]


class TestRecompute(SourceContract):
    def source(self, reader):
        self.model = reader.engine.model
        return read_rows(reader, "recompute", need_norms=True)[0]


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


def test_norms_are_sums_over_samples():
    source, norms = read_rows(reader([DATA[:4], DATA[4:]]), "memory", need_norms=True)
    assert norms.sums[""] == pytest.approx(float(all_rows(source).square().sum()), rel=1e-6)
    assert sources.sum_norms(source) == norms


def test_batches_are_cut_to_the_batch_size():
    lengths = [
        len(rows[""]) for rows in reader(DataLoader(DATA, batch_size=5), batch_size=2).rows()
    ]
    assert lengths == [2, 2, 1, 2]


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
