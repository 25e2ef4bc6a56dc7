"""Models whose path depends on the data: later batches are as right as the first."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from captured import Table, assert_all_right, assert_right, batches, engine
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, capture
from pydvl_datainf.gradients.paths import path_of

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")


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
    compared, compare = [], capture.compared
    monkeypatch.setattr(
        capture, "compared", lambda *given: (compared.append(1), compare(*given))[1]
    )
    torch.manual_seed(0)
    watched = engine(Causal().double())
    for positions in range(5, 12):
        assert_all_right(watched, batches(4, shape=(positions, 3)))
    assert len(compared) == 1


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


def test_a_path_is_the_same_for_other_numbers_and_sizes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    paths = {path_of(model(torch.randn(b, 3)).sum(1), parameters) for b in (2, 2, 5)}
    assert len(paths) == 1
    other = path_of((model(torch.randn(2, 3)) + model[2].bias).sum(1), parameters)
    assert not other <= paths.pop()


class AtTheKink(nn.Module):
    """As rounding does in batches of another size: a zero comes out on either side of its ReLU."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return (self.inner(x) + (1e-9 if len(x) > 1 else -1e-9)).relu()


def test_samples_that_rounding_puts_on_either_side_of_a_kink_are_not_refused():
    torch.manual_seed(0)
    model = AtTheKink()
    nn.init.zeros_(model.inner.bias)
    watched = engine(model)
    watched.rows((torch.randn(5, 3), torch.randn(5, 2)))
    y = torch.randn(5, 2)
    rows = watched.rows((torch.zeros(5, 3), y))["inner"]
    torch.testing.assert_close(rows[:, -2:], -y, rtol=0, atol=1e-7)  # of the bias, by mse_loss
