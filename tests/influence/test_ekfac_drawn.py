"""EK-FAC at labels that the model drew, against dense Kronecker products in float64."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import dense
import kronecker
import tiny
from fitted import STRUCTURES, close
from pydvl_datainf import (
    CausalLM,
    DampingError,
    EkfacInfluence,
    ExactInfluence,
    ObjectiveError,
    SourceError,
    approximation_error,
)
from pydvl_datainf.gradients.relabelled import drawn
from pydvl_datainf.objectives import OutputLoss
from pydvl_datainf.objectives.own_labels import label_logits
from small_runs import samples


def network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


TEST, TRAIN = samples(30, 2), samples(23, 1)


def ekfac(model=None, λ="auto", structure="module", **settings):
    settings = {"labels": "drawn", **settings}
    return EkfacInfluence(model or network(), F.cross_entropy, λ, structure, **settings)


def relabelled(model, batch, seed=0):
    """The batch at the labels of the model."""
    return batch[0], drawn(label_logits(OutputLoss(F.cross_entropy), model, batch), batch, seed)


def of_network(block, names, model, batch, rows, λ):
    """The dense inverse of a block of the network, whose curvature is that of a batch."""
    inputs = {
        ("weight",): lambda layer, x: x,
        ("bias",): lambda layer, x: [1.0],
        ("weight", "bias"): kronecker.with_one,
    }[tuple(name[2:] for name in names)]
    layer = model[int(block[0])]
    A, S = kronecker.moments(model, F.cross_entropy, batch, layer, inputs)
    return kronecker.ekfac_matrix(rows, λ, A, S, has_bias=len(names) == 2)


def expected(model, test, train, structure, λ, seed=0):
    """Influences whose inverse is that of drawn labels, and λ of each block."""
    own, members = relabelled(model, train, seed), STRUCTURES[structure]
    rows = kronecker.rows_of(model, F.cross_entropy, own, members)
    damping = {b: {"auto": dense.automatic_damping(g)}.get(λ, λ) for b, g in rows.items()}
    inverses = {
        b: of_network(b, names, model, own, rows[b], damping[b]) for b, names in members.items()
    }
    v, g = (kronecker.rows_of(model, F.cross_entropy, side, members) for side in (test, train))
    return kronecker.influences(inverses, v, g), damping


@pytest.mark.parametrize("λ", ["auto", 1e-3])
@pytest.mark.parametrize("n", [1, 7, 23])
@pytest.mark.parametrize("structure", ["module", "parameter_wise"])
def test_influences_are_those_of_dense_kronecker_products(structure, n, λ):
    train = samples(n, n)
    influence = ekfac(λ=λ, structure=structure).fit([train])
    found, damping = expected(network(), TEST, train, structure, λ)
    close(influence.training_influences(*TEST), found)
    close(influence.influences(*TEST, *train), found)
    assert influence.damping == pytest.approx(damping, rel=1e-9)
    own, _ = expected(network(), train, train, structure, λ)
    close(influence.self_influences(), own.diag())
    assert influence.n_samples == n
    assert set(influence.block_inverses.values()) == {"EK-FAC"}


def test_given_labels_another_seed_and_other_moments_are_told_apart():
    """Negative controls; the last has the eigenvalues of drawn labels in the basis of the given."""
    right, _ = expected(network(), TEST, TRAIN, "module", 0.01)
    close(ekfac(λ=0.01).fit([TRAIN]).training_influences(*TEST), right)
    others = [
        ekfac(λ=0.01, **own).fit([TRAIN]).training_influences(*TEST)
        for own in ({"labels": "given"}, {"label_seed": 1})
    ]
    half = ekfac(λ=0.01)
    half._drawn = None
    for wrong in (*others, half.fit([TRAIN]).training_influences(*TEST)):
        with pytest.raises(AssertionError):
            close(wrong, right, 1e-4)
    close(others[1], expected(network(), TEST, TRAIN, "module", 0.01, seed=1)[0])


def test_automatic_damping_is_a_tenth_of_the_mean_of_the_eigenvalues():
    influence = ekfac(damping_scale=3).fit([TRAIN])
    for block, λ in influence.damping.items():
        eigenvalues = influence._fit.methods[block].eigenvalues
        assert pytest.approx(0.3 * float(eigenvalues.mean()), rel=1e-12) == λ
    again = ekfac(λ=1.0).fit([TRAIN]).with_regularization("auto", damping_scale=3)
    close(again.training_influences(*TEST), influence.training_influences(*TEST))


@given(
    seed=st.integers(0, 2**32 - 1),
    copies=st.integers(1, 3),
    λ=st.floats(1e-3, 10),
)
def test_with_one_token_it_is_the_exact_inverse(seed, copies, λ):
    """G = g xᵀ makes the Kronecker product g gᵀ ⊗ x xᵀ, and copies have the same labels drawn."""
    train = samples(1, seed % 2**31)
    batch = tuple(t.repeat_interleave(copies, 0) for t in train)
    given_to = (network(seed), F.cross_entropy, λ, "module")
    exact = ExactInfluence(*given_to, curvature="gauss-newton", labels="drawn").fit([batch])
    found = EkfacInfluence(*given_to, labels="drawn").fit([batch])
    close(found.influence_factors(*TEST), exact.influence_factors(*TEST))


def test_with_several_samples_it_is_not_the_exact_inverse():
    """Negative control of the case above."""
    given_to = (network(), F.cross_entropy, 0.01, "module")
    exact = ExactInfluence(*given_to, curvature="gauss-newton", labels="drawn").fit([TRAIN])
    with pytest.raises(AssertionError):
        close(
            ekfac(λ=0.01).fit([TRAIN]).influence_factors(*TEST),
            exact.influence_factors(*TEST),
            1e-3,
        )


def test_order_batches_and_copies_do_not_matter():
    x, y = TRAIN
    factors = ekfac().fit([TRAIN]).influence_factors(*TEST)
    others = [
        ekfac(batch_size=2).fit(list(zip(x.split(9), y.split(9), strict=True))),
        ekfac().fit([(x.flip(0), y.flip(0))]),
        ekfac().fit([TRAIN, TRAIN]),
        pickle.loads(pickle.dumps(ekfac().fit([TRAIN]))).to("cpu"),
        ekfac().fit([TRAIN]).unfitted(fix_damping=False).fit([TRAIN]),
    ]
    for influence in others:
        close(influence.influence_factors(*TEST), factors)


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_lora_over_padded_texts_of_several_tokens(max_tokens):
    """A row is that of √T times the mean over T tokens, and so are its output gradients."""
    torch.manual_seed(4)
    model = tiny.moved(tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval())
    batch, test = tiny.answers(5, 8), tiny.answers(3, 6)
    found = label_logits(CausalLM(), model, batch)
    own = batch | {"labels": found.replaced(drawn(found, batch, 0))}
    assert len(set(found.counted.sum(1).tolist())) > 1  # the premise

    def weighted_loss(model, sample):
        (at,) = (own["labels"] == sample["labels"]).all(1).nonzero()[:, 0].tolist()
        return found.counted[at].sum().double().sqrt() * tiny.answer_loss(model, sample)

    members = {name.removesuffix(".weight"): [name] for name in tiny.names_of(model)}
    weights = found.counted.sum(1).double().sqrt()[:, None]  # of rows: the norms are in float32
    rows = kronecker.rows_of(model, tiny.answer_loss, own, members)
    rows, inverses = {block: weights * g for block, g in rows.items()}, {}
    for block in members:
        A, S = kronecker.moments(model, weighted_loss, own, model.get_submodule(block))
        inverses[block] = kronecker.ekfac_matrix(rows[block], 1e-3, A, S)
    v, g = (kronecker.rows_of(model, tiny.answer_loss, side, members) for side in (test, batch))
    settings = {"labels": "drawn", "max_tokens": max_tokens}
    influence = EkfacInfluence(model, CausalLM(), 1e-3, members, **settings).fit([batch])
    close(influence.training_influences(test), kronecker.influences(inverses, v, g))


def test_blocks_that_are_no_layer_have_the_exact_inverse_of_the_same_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4)).double()
    members = {str(i): [f"{i}.weight", f"{i}.bias"] for i in range(3)}
    own = relabelled(model, TRAIN)
    rows = kronecker.rows_of(model, F.cross_entropy, own, members)
    inverses = {"1": dense.exact_matrix(rows["1"], 1e-2)}
    for block in ("0", "2"):
        inverses[block] = of_network(block, members[block], model, own, rows[block], 1e-2)
    v, g = (kronecker.rows_of(model, F.cross_entropy, side, members) for side in (TEST, TRAIN))
    influence = ekfac(model, 1e-2).fit([TRAIN])
    assert influence.block_inverses["1"] == "exact"
    for _ in range(2):  # asked again, and after a move
        close(influence.training_influences(*TEST), kronecker.influences(inverses, v, g))
        influence.to("cpu")


# Refused


def test_what_does_not_go_is_refused_early():
    with pytest.raises(ObjectiveError, match='labels must be "given" or "drawn", got \'all\''):
        ekfac(labels="all")
    with pytest.raises(ObjectiveError, match="label_seed must be a number"):
        ekfac(label_seed=-1)
    influence = EkfacInfluence(network(), F.mse_loss, labels="drawn")
    with pytest.raises(ObjectiveError, match="labels that a model would give"):
        influence.fit([(TRAIN[0], torch.zeros(23, 4).double())])
    assert not influence.is_fitted
    with pytest.raises(SourceError, match='Compare one with curvature="empirical"'):
        approximation_error(ekfac().fit([TRAIN]), *TEST)


def test_a_model_that_is_certain_has_no_curvature():
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([2000.0, -2000.0]))
    batch = torch.randn(3, 2).double(), torch.ones(3).long()
    with pytest.raises(DampingError, match="zero up to rounding"):
        ekfac(model).fit([batch])
    found = ekfac(model, 1.0).fit([batch])
    close(found.influence_factors(*batch), found.loss_gradients(*batch))
