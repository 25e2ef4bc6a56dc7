"""Memory that tasks of a kind use again and again."""

import pytest
import torch

from piece_runs import PIECES, TIGHT, datainf, run
from pydvl_datainf.runner.tasks import Context
from pydvl_datainf.runner.tasks import rows as reading


@pytest.fixture
def context():
    return Context(None)


def test_the_same_memory_is_given_again_and_other_memory_for_something_else(context):
    first = context.memory("rows", (3, 4), torch.float16)
    assert first.shape == (3, 4)
    assert first.dtype == torch.float16
    assert context.memory("rows", (2, 5), torch.float16).data_ptr() == first.data_ptr()
    assert context.memory("others", (3, 4), torch.float16).data_ptr() != first.data_ptr()


def test_memory_grows_and_stays_as_large(context):
    context.memory("rows", (3, 4), torch.float64)
    larger = context.memory("rows", (5, 7), torch.float64)
    assert larger.shape == (5, 7)
    context.memory("rows", (1, 1), torch.float64)
    assert context.memory("rows", (7, 5), torch.float64).data_ptr() == larger.data_ptr()


def test_tasks_of_another_kind_find_nothing(context):
    context.begin("pieces")
    context.memory("rows", (3, 4), torch.float16).fill_(7)
    context.begin("pieces")
    assert (context.memory("rows", (3, 4), torch.float16) == 7).all()  # the control
    context.begin("gradients")
    assert not vars(context)["_memory"]


def test_the_pieces_of_a_run_have_one_memory(tmp_path, monkeypatch):
    """The widest piece comes second, and the last takes what that one had."""
    places = []
    read = reading.read_stored

    def watched(context, p, samples, of, memory):
        stored = read(context, p, samples, of, memory)
        places.append((p, stored[0].data_ptr()))
        return stored

    monkeypatch.setattr(reading, "read_stored", watched)
    run(tmp_path / "run.zarr", memory=TIGHT[datainf])
    groups = len(places) // len(PIECES)
    assert groups > 1  # the premise
    assert [p for p, _ in places] == [0, 1, 2] * groups
    assert places[1][1] == places[2][1]
