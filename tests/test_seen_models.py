"""Whether a model is still what was seen: of large frozen tensors only a part is read again."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, ModelError
from pydvl_datainf import fingerprint as module
from pydvl_datainf.fingerprint import WHOLE, Seen, fingerprint

SIDE = 600  # a weight of 1.4 MB


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(SIDE, SIDE).requires_grad_(False)
        self.tuned = nn.Linear(SIDE, SIDE)
        self.register_buffer("table", torch.randn(SIDE, SIDE))
        self.table_of_rows = nn.Buffer(torch.randn(2 * SIDE, SIDE)[::2])  # with gaps


LARGE = ("frozen.weight", "table", "table_of_rows", "tuned.weight")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def seen(model):
    found = Seen(fingerprint(model))
    assert found.changes(model) == []
    assert found.changes(model) == []
    assert all(model.state_dict()[name].nbytes > WHOLE for name in LARGE)  # the premise
    return found


def set_one(tensor):
    with torch.no_grad():
        tensor[SIDE // 2, SIDE // 7] += 1


def set_through_data(tensor):
    tensor.data[SIDE // 2, SIDE // 7] += 1


def add_through_data(tensor):
    tensor.data += 1e-3


def add_through_numpy(tensor):
    array = tensor.detach().numpy()
    array += np.float32(1e-3)


@pytest.mark.parametrize("change", [set_one, add_through_data, add_through_numpy])
@pytest.mark.parametrize("name", LARGE)
def test_changes_are_noticed_and_so_are_their_ends(model, seen, name, change):
    tensor = dict((*model.named_parameters(), *model.named_buffers()))[name]
    before = tensor.detach().clone()
    change(tensor)
    assert seen.changes(model) == [name]
    tensor.data.copy_(before)
    assert seen.changes(model) == []


@pytest.mark.parametrize("name", ["frozen.bias", "tuned.weight", "table_of_rows"])
def test_one_entry_behind_torchs_back_is_noticed_where_tensors_are_read_whole(model, seen, name):
    tensor = dict((*model.named_parameters(), *model.named_buffers()))[name]
    tensor.data[(SIDE // 3,) * tensor.ndim] += 1
    assert seen.changes(model) == [name]


def test_another_tensor_in_its_place_is_noticed(model, seen):
    changed = model.frozen.weight.detach().clone()
    changed[SIDE // 2, SIDE // 7] += 1
    model.frozen.weight = nn.Parameter(changed, requires_grad=False)
    assert seen.changes(model) == ["frozen.weight"]


def test_tensors_that_come_and_go_are_noticed(model, seen):
    del model.table
    model.other = nn.Buffer(torch.zeros(SIDE, SIDE))
    assert seen.changes(model) == ["table", "other"]


def test_the_same_elsewhere_is_the_same(model, seen):
    model.frozen.weight = nn.Parameter(model.frozen.weight.clone(), requires_grad=False)
    assert seen.changes(model) == []
    set_one(model.frozen.weight)
    assert seen.changes(model) == ["frozen.weight"]


def test_another_process_believes_no_place_in_memory(model, seen):
    """What is unseen here, an entry changed behind torch's back, is seen there."""
    set_through_data(model.frozen.weight)
    assert seen.changes(model) == []
    assert pickle.loads(pickle.dumps(seen)).changes(model) == ["frozen.weight"]


def test_large_frozen_tensors_are_read_once(model, seen, monkeypatch):
    read = []

    def as_bytes(tensor):
        read.append(tensor.nbytes)
        return whole(tensor)

    whole = module.as_bytes
    monkeypatch.setattr(module, "as_bytes", as_bytes)
    assert seen.changes(model) == []
    assert sum(read) < 2 * 4 * SIDE**2 + WHOLE // 8  # those of the tuned one and of that with gaps
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) > 4 * 4 * SIDE**2


@pytest.mark.parametrize("change", [set_one, add_through_data])
def test_a_fitted_model_that_changed_is_refused_at_later_calls(change):
    torch.manual_seed(0)
    frozen, tuned = nn.Linear(SIDE, SIDE).requires_grad_(False), nn.Linear(SIDE, 2)
    samples = torch.randn(4, SIDE), torch.tensor([0, 1, 1, 0])
    influence = DataInfInfluence(nn.Sequential(frozen, tuned), F.cross_entropy).fit([samples])
    before = influence.influences(*samples)
    torch.testing.assert_close(influence.influences(*samples), before)
    change(frozen.weight)
    with pytest.raises(ModelError, match=r"changed after fit \(1 tensors: 0\.weight\)"):
        influence.influences(*samples)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_step_of_a_few_entries_is_seen(model, seen, optimizer):
    weight = model.frozen.weight.requires_grad_(True)
    weight.grad = torch.zeros_like(weight)
    weight.grad[SIDE // 2, SIDE // 7] = 1
    optimizer([weight], lr=1.0, fused=True, weight_decay=0.0).step()
    weight.requires_grad_(False)
    assert seen.changes(model) == ["frozen.weight"]
