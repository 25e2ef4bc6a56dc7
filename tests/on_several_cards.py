"""What test_cards.py also runs: a model whose layers lie on two cards is as on one device."""

from functools import cache, partial

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn import functional as F

import dense
import pretend
import tiny
from pydvl_datainf import (
    CausalLM,
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    ModelError,
    run_influences,
)

FIRST, SECOND = "cuda:0", "cuda:1"
DAMPING = 0.05
NAMES = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"], "4": ["4.weight", "4.bias"]}
MAPS = {
    "two cards": {"0": FIRST, "1": FIRST, "2": SECOND, "3": SECOND, "4": SECOND},
    "to and fro": {"0": SECOND, "1": FIRST, "2": FIRST, "3": SECOND, "4": SECOND},
}


@pytest.fixture(autouse=True, scope="module")
def cards():
    pretend.start()


def network():
    torch.manual_seed(0)
    layers = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(*layers).double()


def spread(model, places, main=None):
    """Accelerate's hooks move what a layer is given to where the layer is."""
    return dispatch_model(model, places, main_device=main)


def by_hand(model, *_):
    """The last layer on a card, the rest on the CPU, as a user's own hooks have it."""
    add_hook_to_module(model[4].to(SECOND), AlignDevicesHook(SECOND))
    return add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True))


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, 4), (n, 3)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


TRAIN, TEST = data(7, 1), data(3, 2)
BATCHES = [tuple(t[:4] for t in TRAIN), tuple(t[4:] for t in TRAIN)]


@cache
def rows(side):
    batch = TRAIN if side == "train" else TEST
    return {b: dense.gradients(network(), F.mse_loss, batch, n) for b, n in NAMES.items()}


def truth(test, inverse=dense.datainf_matrix, damping=None):
    damping = damping or dict.fromkeys(NAMES, DAMPING)
    return dense.influences(rows(test), rows("train"), rows("train"), damping, inverse)


def close(values, exact, device):
    assert values.device == torch.device(device)
    torch.testing.assert_close(values.cpu(), exact, rtol=1e-9, atol=1e-12)


MADE = {
    "two cards": (lambda: spread(network(), MAPS["two cards"], FIRST), FIRST),
    "to and fro": (lambda: spread(network(), MAPS["to and fro"], FIRST), SECOND),
    "cpu and card": (lambda: by_hand(network()), "cpu"),
}


@pytest.mark.parametrize(
    ("place", "gradients"),
    # vmap hides pretended cards from what moves outputs back to them, but not from other hooks.
    [*((place, "capture") for place in MADE), ("cpu and card", "functional")],
)
@pytest.mark.parametrize("data", ["cpu", SECOND])
def test_rows_are_those_of_one_device(place, gradients, data):
    made, first = MADE[place]
    model = made()
    assert len({p.device for p in model.parameters()}) == 2  # the premise
    before = [p.cpu() for p in model.parameters()]
    influence = DataInfInfluence(model, F.mse_loss, DAMPING, gradients=gradients)
    found = influence.loss_gradients_by_block(*(t.to(data) for t in TRAIN))
    for block, exact in rows("train").items():
        close(found[block], exact, first)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.cpu(), old)
        assert p.grad is None


@pytest.mark.parametrize(
    ("place", "kind", "inverse", "kept"),
    [
        ("to and fro", DataInfInfluence, dense.datainf_matrix, "recompute"),
        ("cpu and card", DataInfInfluence, dense.datainf_matrix, "memory"),
        ("two cards", ExactInfluence, dense.exact_matrix, "memory"),
    ],
)
def test_influences(place, kind, inverse, kept):
    made, first = MADE[place]
    influence = kind(made(), F.mse_loss, DAMPING, rows=kept).fit(BATCHES)
    exact = truth("test", inverse)
    close(influence.influences(*TEST, *TRAIN), exact, first)
    close(influence.training_influences(*TEST), exact, first)
    close(influence.self_influences(), truth("train", inverse).diagonal(), first)
    factors = influence.influence_factors(*TEST).to(SECOND)
    close(influence.influences_from_factors(factors, *TRAIN), exact, first)


def test_automatic_damping():
    made, first = MADE["two cards"]
    damping = {block: dense.automatic_damping(rows("train")[block]) for block in NAMES}
    influence = DataInfInfluence(made(), F.mse_loss).fit(BATCHES)
    close(influence.training_influences(*TEST), truth("test", damping=damping), first)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("to and fro", EkfacInfluence),
        ("two cards", partial(ExactInfluence, curvature="gauss-newton")),
    ],
)
def test_moments_and_labels_of_the_model(place, kind):
    made, first = MADE[place]
    train = [(x, y[:, 0].gt(0).long()) for x, y in BATCHES]
    whole, other = (kind(m, F.cross_entropy).fit(train) for m in (network(), made()))
    test = TEST[0], torch.tensor([0, 2, 1])
    close(other.training_influences(*test), whole.training_influences(*test), first)


def test_perturbation():
    made, first = MADE["to and fro"]
    exact = [
        DataInfInfluence(model, F.mse_loss, DAMPING)
        .fit(BATCHES)
        .influences(*TEST, *TRAIN, mode="perturbation")
        for model in (network(), made())
    ]
    close(exact[1], exact[0], first)


@pytest.mark.parametrize(
    ("place", "kept", "error"), [("to and fro", "recompute", 1e-9), ("cpu and card", "zarr", 1e-3)]
)
def test_runs(tmp_path, place, kept, error):
    influence = DataInfInfluence(MADE[place][0](), F.mse_loss, DAMPING)
    folder = str(tmp_path / "run.zarr")
    run = run_influences(influence, [TEST], BATCHES, folder, rows=kept, progress=False)
    exact = truth("test")
    scores, size = torch.from_numpy(run.scores[...]), exact.square().mean().sqrt()
    torch.testing.assert_close(scores / size, exact / size, rtol=0, atol=error)


def llama():
    torch.manual_seed(0)
    return tiny.llama()


def in_layers(model, first, second):
    """A decoder's first layer on one device, the second and the head on another."""
    inner = "model.embed_tokens", "model.rotary_emb", "model.layers.0"
    return spread(
        model,
        dict.fromkeys(inner, first)
        | {"model.layers.1": second, "model.norm": second, "lm_head": second},
        first,
    )


def test_adapters_over_a_spread_base():
    torch.manual_seed(1)
    whole = tiny.lora(llama(), ["q_proj", "down_proj"]).double().eval()
    state = {n: p.detach().clone() for n, p in whole.named_parameters() if p.requires_grad}
    model = tiny.lora(in_layers(llama().double(), FIRST, SECOND), ["q_proj", "down_proj"]).eval()
    with torch.no_grad():
        for name in state:
            model.get_parameter(name).copy_(state[name])
    assert len({p.device for p in model.parameters() if p.requires_grad}) == 2
    torch.manual_seed(2)
    batch, names = tiny.answers(5), tiny.names_of(whole)
    influence = DataInfInfluence(model, CausalLM())
    exact = dense.gradients(whole, tiny.answer_loss, batch, names)
    tiny.assert_rows_close(influence.loss_gradients(batch).cpu(), exact)
    influence.fit([batch])
    scores = influence.training_influences(batch)
    tiny.assert_scores_close(scores.cpu(), tiny.influences(whole, tiny.answer_loss, batch, batch))


def test_a_spread_model_stays_where_it_is():
    influence = DataInfInfluence(spread(network(), MAPS["two cards"]), F.mse_loss)
    with pytest.raises(ModelError, match="another device_map"):
        influence.to("cpu")
    assert {str(p.device) for p in influence.model.parameters()} == {FIRST, SECOND}


def test_a_spread_model_is_not_sent(tmp_path):
    influence = DataInfInfluence(spread(network(), MAPS["two cards"]), F.mse_loss)
    with pytest.raises(ModelError, match="builds it in each"):
        run_influences(influence, [TEST], BATCHES, str(tmp_path / "run"), n_jobs=2)
    assert not (tmp_path / "run").exists()
