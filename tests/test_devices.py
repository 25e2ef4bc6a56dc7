"""What differs on accelerators: coarser arithmetic, other random states, several cards."""

import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import seen_cards
from pydvl_datainf import DataInfInfluence, Denoising
from pydvl_datainf.demo import tuning
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.evaluation import (
    class_auc,
    class_recall,
    largest,
    mislabel_auc,
    relative_influence,
)
from pydvl_datainf.gradients.checks import Tolerance
from pydvl_datainf.gradients.sources import _free_memory
from pydvl_datainf.gradients.supported import _recurrence_without_cudnn
from pydvl_datainf.huggingface.models import _seeded
from pydvl_datainf.plots import influential_images, perturbation_image
from pydvl_datainf.plots.arrays import checked_floats, checked_labels
from pydvl_datainf.results.metadata import group_codes
from pydvl_datainf.runner import executors, worker_inputs
from pydvl_datainf.runner.batched_data import as_batched
from pydvl_datainf.runner.executors import Joblib
from tiny import pair

IS_SEPARATE = hasattr(torch.backends.cudnn, "conv")
KINDS = (
    {"products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn.conv}
    if IS_SEPARATE
    else {}
)
separate = pytest.mark.skipif(
    not IS_SEPARATE, reason="before torch 2.9 there is no switch for convolutions"
)


@pytest.fixture(autouse=True)
def exact_float32():
    """Torch without TF32, and afterwards as it was."""
    before = {name: kind.fp32_precision for name, kind in KINDS.items()}
    for kind in KINDS.values():
        kind.fp32_precision = "ieee"
    yield
    for name, kind in KINDS.items():
        kind.fp32_precision = before[name]


@pytest.mark.parametrize("name", KINDS)
def test_bounds_leave_room_for_tf32(name):
    model, card = nn.Linear(3, 3), torch.device("cuda")
    narrow = Tolerance.of(model, card)
    assert narrow == Tolerance.of(model, torch.device("cpu"))
    KINDS[name].fp32_precision = "tf32"
    wide = Tolerance.of(model, card)
    loss, rounded = torch.tensor([1.0]), torch.tensor([1 + 2**-10])  # TF32 keeps ten bits
    assert wide.close(loss, rounded)
    assert wide.same(loss, rounded)
    assert not narrow.close(loss, rounded)
    assert not narrow.same(loss, rounded)
    gradient, other = {"weight": torch.ones(3)}, {"weight": torch.full((3,), 1 + 2**-8)}
    assert wide.unequal(other, gradient) == []
    assert narrow.unequal(other, gradient) == ["weight"]
    assert wide.unequal({"weight": torch.full((3,), 1.1)}, gradient) == ["weight"]


@separate
def test_tf32_is_neither_of_float64_nor_of_cpus():
    model, wide = nn.Linear(3, 3), nn.Linear(3, 3).double()
    cpu, card = torch.device("cpu"), torch.device("cuda")
    before = [Tolerance.of(model, cpu), Tolerance.of(wide, card)]
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    assert [Tolerance.of(model, cpu), Tolerance.of(wide, card)] == before


@separate
def test_half_precision_stays_the_coarsest():
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16())
    assert Tolerance.of(model, torch.device("cuda")) == Tolerance.of(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "layer", "enabled"),
    [
        ("cuda", nn.LSTM, False),
        ("cuda", nn.GRU, False),
        ("cuda", nn.Linear, True),
        ("cpu", nn.LSTM, True),
    ],
)
def test_recurrent_layers_are_differentiated_without_cudnn(device, layer, enabled):
    model = nn.ModuleDict({"inner": layer(3, 3)}).eval()
    with _recurrence_without_cudnn(model, torch.device(device)):
        assert torch.backends.cudnn.enabled == enabled
    assert torch.backends.cudnn.enabled


def test_memory_that_torch_keeps_for_later_is_free(monkeypatch):
    numbers = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert _free_memory(torch.device("cuda")) == 140


def test_random_weights_leave_the_states_of_other_devices(monkeypatch):
    def seeded(seed):
        raise AssertionError("the states of all cards were set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    before = torch.get_rng_state()
    with _seeded():
        first = torch.randn(3)
    with _seeded():
        torch.testing.assert_close(torch.randn(3), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_demo_leaves_the_states_of_other_devices(monkeypatch):
    def built(folder, rank):
        return torch.randn(3)

    def seeded(seed):
        raise AssertionError("the states of all cards were set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    monkeypatch.setattr(tuning, "build_model", built)
    monkeypatch.setattr(tuning, "tune", lambda *_: None)
    monkeypatch.setattr(tuning, "freeze_all_but_adapters", lambda model: None)
    reviews, settings = SimpleNamespace(to_loader=lambda *_, **__: None), DemoSettings(seed=5)
    model = tuning.tuned_model(reviews, Path(), settings, progress=False)
    expected = torch.randn(3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(model, expected, rtol=0, atol=0)


@pytest.mark.parametrize("available", [True, False])
def test_what_is_sent_goes_to_the_current_card_of_a_process(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    storage = SimpleNamespace(cuda=lambda number: f"on {number}")
    assert worker_inputs._own_device(storage, "cuda:3") == ("on 2" if available else storage)
    assert worker_inputs._own_device(storage, "cpu") is storage


@pytest.fixture
def own_workers():
    """Processes that no other test gets."""
    get_reusable_executor().shutdown()
    yield
    get_reusable_executor().shutdown()


@pytest.mark.usefixtures("fork_server")
def test_processes_of_joblib_take_the_cards_in_turn(tmp_path, own_workers):
    for run in ("first", "second"):  # of which the second finds the same processes
        together = tmp_path / run
        together.mkdir()
        executor = Joblib(2, progress=False)
        shared = [executor.share(together)]
        items = [seen_cards.SeenFromACard() for _ in range(8)]
        cards = dict(executor.map(seen_cards.current_card, items, shared, "cards"))
        executor.close()
        assert sorted(cards.values()) == [0, 1]


def test_more_processes_than_cards_share_them(tmp_path, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for _ in range(5):
        executors.processes._choose_card.cache_clear()  # another process
        executors.processes._choose_card(tmp_path)
        executors.processes._choose_card(tmp_path)
    assert current == [0, 1, 2, 0, 1]


def test_a_process_without_work_on_a_card_starts_none(tmp_path, monkeypatch):
    queued = []
    monkeypatch.setattr(torch.cuda, "_queued_calls", queued)
    executors.processes._choose_card.cache_clear()
    executors.processes._choose_card(tmp_path)
    assert len(queued) == 1  # for when there is a first tensor on one
    assert not torch.cuda.is_initialized()


def test_data_is_sent_as_the_model_is(monkeypatch):
    sent = []

    def first(storage, location):
        sent.append(storage.nbytes())
        return storage

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(worker_inputs, "_own_device", first)
    influence = DataInfInfluence(nn.Linear(3, 3), F.mse_loss, 0.1)
    test, train = (as_batched(TensorDataset(*pair(n)), None, "a") for n in (5, 7))
    got = pickle.loads(cloudpickle.dumps(worker_inputs.Inputs(influence, test, train)))
    assert sorted(sent) == [5 * 12] * 2 + [7 * 12] * 2
    for samples, n in ((got.test, 5), (got.train, 7)):
        torch.testing.assert_close(samples.read(0), list(pair(n)), rtol=0, atol=0)
    assert got.influence.n_samples is None


class Held:
    """A loss whose attributes are what must go along."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs, y):
        return (self.weight * (outputs - y)).square().sum()


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def losses(self, model, batch):
        return (self.weight * model(batch[0])).sum(1)


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (lambda w: nn.CrossEntropyLoss(w, reduction="sum"), lambda i: i.objective.loss.weight),
        (lambda w: partial(F.mse_loss, weight=w), lambda i: i.objective.loss.keywords["weight"]),
        (lambda w: Held(w), lambda i: i.objective.loss.weight),
        (lambda w: Held(nn.ParameterList([w])), lambda i: i.objective.loss.weight[0]),
        (lambda w: Slotted(w), lambda i: i.objective.weight),
        (lambda w: Denoising(w / 4), lambda i: i.objective.alphas),
    ],
    ids=["module", "partial", "attribute", "part", "slot", "denoising"],
)
def test_what_a_loss_holds_moves_with_the_model(loss, weight):
    influence = DataInfInfluence(nn.Linear(3, 3), loss(torch.tensor([1.0, 2, 3] * 3)))
    kept = weight(influence)
    influence.to("cpu")
    assert weight(influence) is kept
    influence.to("meta")
    assert weight(influence).device.type == "meta"
    assert weight(influence).shape == kept.shape


def graph(values):
    """A tensor that NumPy refuses, as it does those on cards."""
    tensor = torch.tensor(values).requires_grad_()
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(tensor)
    return tensor


def test_measures_take_tensors():
    scores = [[0.9, 0.1, 0.3, 0.2], [0.4, 0.5, 0.1, 0.2]]
    queries, classes = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1])
    assert class_auc(graph(scores), queries, classes).tolist() == [0.5, 0.0]
    assert class_recall(graph(scores), queries, classes).tolist() == [0.5, 0.0]
    wrong = torch.tensor([False, True, False, True])
    assert mislabel_auc(graph([0.1, 0.7, 0.4, 0.9]), wrong) == 1
    relative = relative_influence(graph([6.0, -1.0, 0.0]), graph([9.0, 0.25, 0.0]))
    assert relative.tolist() == [2, -2, 0]
    assert largest(graph([0.5, 2.0, -1.0, 2.0]), 3).tolist() == [1, 3, 0]


def test_plots_and_columns_take_tensors():
    assert checked_floats("scores", graph([0.5, 2.0])).tolist() == [0.5, 2]
    assert checked_labels("labels", graph([0.0, 1.0]), 2).tolist() == [0, 1]
    assert group_codes(graph([3.0, 1.0, 3.0]), 3) == ((0, 1, 0), [3, 1])
    image = perturbation_image(graph([[0.5, 1.0]]), graph([[1.0, -1.0]]))
    assert image.images[0].get_array().shape[:2] == (1, 2)
    axes = influential_images(graph([[0.5]]), [graph([[0.0]]), graph([[1.0]])], graph([1.0, -1.0]))
    assert [ax.get_title() for ax in axes[1:]] == ["+1", "−1"]
