"""Models whose path depends on the data: later batches are as right as the first, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import ModelError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.gradients.capture import SAMPLES_PER_CHECK
from pydvl_datainf.gradients.paths import path_of
from pydvl_datainf.objectives import OutputLoss

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


def engine(model, **kwargs):
    return CaptureEngine(
        model, OutputLoss(F.mse_loss), Blocks.from_model(model, "module"), **kwargs
    )


def batches(*lengths, shape=(3,)):
    for length in lengths:
        yield torch.randn(length, *shape).double(), torch.randn(length, 2).double()


def assert_right(watched, batch):
    names = list(watched.blocks.shapes)
    exact = dense.gradients(watched.model, F.mse_loss, batch, names)
    rows = watched.blocks.flatten(watched.rows(batch))
    torch.testing.assert_close(rows, exact, rtol=1e-9, atol=1e-12)


def assert_all_right(watched, some):
    for batch in some:
        assert_right(watched, batch)


class Experts(nn.Module):
    """Sends each token to one of some experts, which are called with their tokens alone."""

    def __init__(self, count, capacity=None):
        super().__init__()
        self.router, self.out = nn.Linear(3, count), nn.Linear(3, 2)
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))
        self.capacity = capacity

    def forward(self, x):
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).flatten(0, 1).max(-1)
        mixed = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            place = (chosen == e).nonzero()[: self.capacity, 0]
            mixed = mixed.index_add(0, place, self.experts[e](tokens[place]) * weights[place, None])
        return self.out((tokens + mixed).tanh().reshape(x.shape).mean(1))


class Deeper(Experts):
    """The same after a layer, so that the graph shows how tokens are picked."""

    def __init__(self, count):
        super().__init__(count)
        self.first = nn.Linear(3, 3)

    def forward(self, x):
        return super().forward(self.first(x).tanh())


@pytest.mark.parametrize("sizes", [(2, 8, 4), (2, 3, 2), (4, 5, 3), (2, 4, 4)])
def test_experts_that_get_a_multiple_of_the_samples_by_chance(sizes):
    length, tokens, count = sizes
    for seed in range(12):
        torch.manual_seed(seed)
        watched = engine(Deeper(count).double())
        assert_all_right(watched, batches(*[length] * 10, shape=(tokens, 3)))


class Attention(nn.Module):
    """Owns a parameter beside its layers, and takes a mask that is common to all samples."""

    def __init__(self):
        super().__init__()
        self.qkv, self.scale = nn.Linear(3, 9), nn.Parameter(torch.ones(3))

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q * self.scale @ k.mT + mask).softmax(-1) @ v


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = Attention(), nn.Linear(3, 2)

    def forward(self, x):
        mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1).to(x)
        return self.out(self.attention(x, mask).mean(1))


def test_as_many_samples_as_an_argument_common_to_them_has_rows():
    torch.manual_seed(0)
    watched = engine(Causal().double())
    for length, positions in ((4, 6), (4, 4), (4, 5), (3, 3), (6, 4), (4, 4)):
        assert_all_right(watched, batches(length, shape=(positions, 3)))


def test_texts_of_many_lengths_are_compared_once(monkeypatch):
    compared, compare = [], CaptureEngine._compared
    monkeypatch.setattr(
        CaptureEngine, "_compared", lambda *given: (compared.append(1), compare(*given))[1]
    )
    torch.manual_seed(0)
    watched = engine(Causal().double())
    for positions in range(5, 12):
        assert_all_right(watched, batches(4, shape=(positions, 3)))
    assert len(compared) == 1


class Table(nn.Module):
    """Owns what others use, and is never called."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))


class SharedExperts(Deeper):
    """Experts that add rows of one table to their tokens, of which they get any number."""

    def __init__(self, count):
        super().__init__(count)
        self.table = Table(count, 3)

    def forward(self, x):
        tokens = self.first(x).tanh().flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).max(-1)
        mixed = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            place = (chosen == e).nonzero()[:, 0]
            moved = (self.experts[e](tokens[place]) + self.table.weight[e]).tanh()
            mixed = mixed.index_add(0, place, moved * weights[place, None])
        return self.out((tokens + mixed).tanh().reshape(x.shape).mean(1))


@pytest.mark.parametrize("sizes", [(2, 8, 4), (2, 3, 2), (4, 5, 3), (2, 4, 4)])
def test_tables_of_experts_that_get_a_multiple_of_the_samples_by_chance(sizes):
    length, tokens, count = sizes
    for seed in range(6):
        torch.manual_seed(seed)
        watched = engine(SharedExperts(count).double())
        assert_all_right(watched, batches(*[length] * 8, shape=(tokens, 3)))


class Turned(nn.Module):
    """Adds rows of a table where positions, not samples, lead; later also where data decides."""

    def __init__(self, later=None):
        super().__init__()
        self.inner, self.out, self.table = nn.Linear(3, 3), nn.Linear(3, 2), Table(1, 3)
        self.later = later

    def forward(self, x):
        h = (self.inner(x).transpose(0, 1) + self.table.weight).tanh().transpose(0, 1)
        if self.later and bool((x > 5).any()):
            h = self.later(h, self.table.weight)
        return self.out(h.mean(1))


def test_tables_where_positions_lead_in_place_of_samples():
    """Premise: with as many positions as samples, or a multiple, sizes do not tell them apart."""
    for length, positions in ((4, 4), (4, 8), (3, 5), (5, 5)):
        torch.manual_seed(0)
        watched = engine(Turned().double())
        assert_all_right(watched, batches(*[length] * 3, shape=(positions, 3)))
    watched = engine(Turned().double())
    for length, positions in ((4, 6), (4, 4), (3, 6), (3, 3), (4, 8)):
        assert_all_right(watched, batches(length, shape=(positions, 3)))


class Kept(nn.Module):
    """Adds a table to the tokens that are positive, as many as there are."""

    def __init__(self):
        super().__init__()
        self.out, self.table = nn.Linear(3, 2), Table(3)

    def forward(self, x):
        kept = x.flatten(0, 1)[(x[..., 0] > 0).flatten()] + self.table.weight
        owner = (x[..., 0] > 0).nonzero()[:, 0]
        return self.out(torch.zeros_like(x[:, 0]).index_add(0, owner, kept.tanh()))


@pytest.mark.parametrize("sizes", [(2, 3), (2, 4), (3, 4)])
def test_tables_that_join_any_number_of_rows(sizes):
    """Premise: what is picked are inputs, so that no graph shows it."""
    for seed in range(12):
        torch.manual_seed(seed)
        watched = engine(Kept().double())
        assert_all_right(watched, batches(*[sizes[0]] * 6, shape=(sizes[1], 3)))


LATER = {
    "added to the samples": lambda h, w: h + w,
    "added to the turned": lambda h, w: (h.transpose(0, 1) + w).sin().transpose(0, 1),
    "a product": lambda h, w: h * w,
    "not joined": lambda h, w: h @ w.expand(3, 3),
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_tables_that_are_used_otherwise_later(later):
    torch.manual_seed(0)
    watched = engine(Turned(later).double())
    assert_all_right(watched, batches(4, 4, 4, shape=(6, 3)))
    for x, y in batches(4, 4, shape=(6, 3)):
        assert_right(watched, (x + 10, y))


def test_what_takes_no_part_costs_nothing():
    """Premise: the model owns it, and returns no tensor, as CLIP does with its scale."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return {"y": self.inner(x)}

    class Loss:
        def losses(self, model, batch):
            return (model(batch[0])["y"] - batch[1]).square().mean(1)

    torch.manual_seed(0)
    model = Scaled().double()
    watched = CaptureEngine(model, Loss(), Blocks.from_model(model, "full"), strict=True)
    for batch in batches(4, 3, 1):
        (rows,) = watched.rows(batch).values()
        names = ["inner.weight", "inner.bias"]
        exact = dense.gradients(model, lambda y, t: F.mse_loss(y["y"], t), batch, names)
        torch.testing.assert_close(rows[:, 1:], exact, rtol=1e-9, atol=1e-12)
        assert (rows[:, 0] == 0).all()


class Several(nn.Module):
    """Returns two tensors, of which the second follows from the first."""

    def __init__(self, count=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, 3))

    def forward(self, x):
        logits = x @ self.weight.T
        return logits, logits.softmax(-1), logits.argmax(-1)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_layers_that_return_several_tensors(used):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.several, self.out = Several(), nn.Linear(4, 2)

        def forward(self, x):
            returned = self.several(x.flatten(0, 1))
            h = sum(returned[i] for i in used)
            return self.out(h.reshape(*x.shape[:2], -1).mean(1))

    torch.manual_seed(0)
    watched = engine(Model().double(), strict=True)
    for length in (4, 3, 1, 5):
        assert_all_right(watched, batches(length, shape=(5, 3)))


def routed(model, *counts):
    """A batch of four samples of five tokens, so many of which go to each expert in turn."""
    chosen = torch.cat([torch.full((count,), e) for e, count in enumerate(counts)])
    x = torch.randn(len(chosen), 3).double()
    directions = torch.linalg.pinv(model.router.weight.data)
    target = -5 * torch.ones(len(chosen), len(counts)).double()
    target[range(len(chosen)), chosen] = 5
    x += (target - model.router(x).detach()) @ directions.T
    order = torch.randperm(len(x))
    return x[order].reshape(4, -1, 3), torch.randn(4, 2).double()


@pytest.mark.parametrize("tokens", [4, 1, 7])
def test_an_expert_that_wakes_late_with_as_many_tokens_as_there_are_samples(tokens):
    torch.manual_seed(0)
    model = Experts(3).double()
    watched = engine(model)
    for counts in ((20, 0, 0), (13, 7, 0), (20 - tokens, 0, tokens), (9, 7, 4), (4, 4, 12)):
        assert_right(watched, routed(model, *counts))


def test_mixtures_of_experts_are_not_refused_for_their_routing():
    torch.manual_seed(0)
    watched = engine(Experts(3).double())
    assert_all_right(watched, batches(*[4] * 40, shape=(5, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_samples_that_share_the_capacity_of_an_expert_are_refused_or_right(seed):
    """The experts are trained: one pass per sample has each sample's own loss in hand."""
    torch.manual_seed(seed)
    watched = engine(Experts(2, capacity=8).double())
    with pytest.raises(ModelError, match=r"depends on other samples.*batch_size=1"):
        assert_all_right(watched, batches(*[4] * 6, shape=(5, 3)))


class Late(nn.Module):
    """Does something else with data that is large."""

    def __init__(self, change, when=lambda x: bool((x > 5).any())):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.change, self.when = change, when

    def forward(self, x):
        h = self.inner(x).tanh()
        return self.out(self.change(self, x, h) if self.when(x) else h)


CHANGES = {
    "a mean over the batch": lambda model, x, h: h + 0.1 * h.mean(0),
    "its neighbour": lambda model, x, h: h + 0.1 * h.roll(1, 0),
    "the batch as one": lambda model, x, h: h / h.norm(),
    "the largest": lambda model, x, h: h - 0.1 * h.amax(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", range(4))
def test_mixing_from_the_ninth_batch_on(change, seed):
    torch.manual_seed(seed)
    watched = engine(Late(change).double())
    assert_all_right(watched, batches(*[4] * 8))
    ((x, y),) = batches(4)
    x[seed] += 10
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows((x, y))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_mixing_in_a_shorter_last_batch(change):
    torch.manual_seed(0)
    watched = engine(Late(change, lambda x: len(x) == 3).double())
    assert_all_right(watched, batches(*[8] * 3))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(next(batches(3)))


def test_mixing_in_a_shorter_last_batch_that_no_graph_shows():
    """Numbers alone differ: a matrix that is the identity but for batches of three."""
    torch.manual_seed(0)
    mixing = {3: torch.full((3, 3), 1 / 3).double()}
    watched = engine(
        Late(lambda model, x, h: mixing.get(len(x), torch.eye(len(x)).double()) @ h).double()
    )
    watched.model.when = lambda x: True
    assert_all_right(watched, batches(*[4] * 3))
    with pytest.raises(ModelError, match="depends on other samples"):
        watched.rows(next(batches(3)))


def test_mixing_that_no_graph_shows_is_found_within_the_samples_between_two_checks():
    torch.manual_seed(0)
    watched = engine(
        Late(lambda model, x, h: model.matrix[: len(x), : len(x)] @ h, lambda x: True).double()
    )
    watched.model.matrix = torch.eye(4).double()
    assert_all_right(watched, batches(*[4] * 5))
    watched.model.matrix = torch.full((4, 4), 1 / 4).double()
    with pytest.raises(ModelError, match="depends on other samples"):
        [watched.rows(batch) for batch in batches(*[4] * (SAMPLES_PER_CHECK // 4))]


REUSED = {
    "in place of its layer": lambda model, x, h: x @ model.inner.weight.T,
    "beside its layer": lambda model, x, h: h + x @ model.inner.weight.T,
    "twice": lambda model, x, h: model.inner(x) + h,
}


@pytest.mark.parametrize("change", REUSED.values(), ids=REUSED)
def test_a_parameter_that_is_used_otherwise_later(change):
    torch.manual_seed(0)
    watched = engine(Late(change).double())
    assert_all_right(watched, batches(*[4] * 3))
    for x, y in batches(4, 4):
        assert_right(watched, (x + 10, y))


def test_an_undecided_router_costs_a_pass_and_no_error():
    """Premise: the loss of one sample is another alone, as where two experts tie to rounding."""

    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.outside, self.inner = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            tied = (x[:, :1] > 5) & (torch.tensor(len(x)) > 1)
            return self.inner(x @ self.outside.weight * torch.where(tied, 1.01, 1.0))

    torch.manual_seed(0)
    watched = engine(Undecided().double())
    for shift in (0.0, 0.0, 10.0):
        ((x, y),) = batches(4)
        x[1, 0] += shift
        assert_right(watched, (x, y))


def test_a_path_is_the_same_for_other_numbers_and_sizes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    paths = {path_of(model(torch.randn(b, 3)).sum(1), parameters) for b in (2, 2, 5)}
    assert len(paths) == 1
    other = path_of((model(torch.randn(2, 3)) + model[2].bias).sum(1), parameters)
    assert not other <= paths.pop()
