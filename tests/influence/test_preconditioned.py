"""Influences in Adam's coordinates: gradients by autograd, scaled by hand, dense inverses."""

import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from fitted import close
from pydvl_datainf import (
    AdamPreconditioner,
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    LissaInfluence,
    OptimizerError,
)
from pydvl_datainf.influence import METHODS
from stepped import (
    BLOCKS,
    TEST,
    TRAIN,
    N,
    network,
    samples,
    scaled_rows,
    scales,
    scales_by_block,
    stepped,
)

BATCHES = [tuple(t[:7] for t in TRAIN), tuple(t[7:] for t in TRAIN)]


@pytest.fixture(scope="module")
def after():
    """A model, the preconditioner of its optimizer, and its scales by hand."""
    model, optimizer = stepped()
    made = AdamPreconditioner.from_optimizer(optimizer, model)
    return model, made, scales_by_block(model, optimizer)


def identity(rows, λ):
    return torch.eye(rows.shape[1], dtype=rows.dtype)


MATRICES = {
    "datainf": (DataInfInfluence, dense.datainf_matrix),
    "exact": (ExactInfluence, dense.exact_matrix),
    "lissa": (
        partial(LissaInfluence, damping_scale=30, iterations=500, tolerance=1e-11),
        lambda rows, λ: dense.exact_matrix(rows, 30 * λ),
    ),
    "plain": (HessianFreeInfluence, identity),
    "scaled": (partial(HessianFreeInfluence, scaled=True), dense.scaled_identity),
}


def expected(rows, test, matrix):
    damping = {block: dense.automatic_damping(g) for block, g in rows.items()}
    return dense.influences(test, rows, rows, damping, matrix)


@pytest.mark.parametrize("name", MATRICES)
def test_every_method_takes_scaled_rows(after, name):
    model, adam, by_block = after
    build, matrix = MATRICES[name]
    influence = build(model, F.cross_entropy, preconditioner=adam).fit(BATCHES)
    rows, test = (scaled_rows(model, data, by_block) for data in (TRAIN, TEST))
    scores = influence.training_influences(*TEST)
    close(scores, expected(rows, test, matrix))
    close(influence.influences(*TEST, *TRAIN), expected(rows, test, matrix))
    plain = build(model, F.cross_entropy).fit(BATCHES).training_influences(*TEST)
    with pytest.raises(AssertionError):  # negative control
        close(plain, scores, 1e-2)


def test_plain_products_are_preconditioned_once(after):
    """Σ v g / (√v̂ + ε), as Adam divides its steps."""
    model, adam, by_block = after
    influence = HessianFreeInfluence(model, F.cross_entropy, preconditioner=adam).fit(BATCHES)
    total = sum(
        (dense.gradients(model, F.cross_entropy, TEST, names) * by_block[block] ** 2)
        @ dense.gradients(model, F.cross_entropy, TRAIN, names).T
        for block, names in BLOCKS.items()
    )
    close(influence.training_influences(*TEST), total)


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_damping_rows_and_self_influences_are_of_scaled_rows(after, rows):
    model, adam, by_block = after
    influence = DataInfInfluence(model, F.cross_entropy, rows=rows, preconditioner=adam)
    influence.fit(BATCHES)
    scaled = scaled_rows(model, TRAIN, by_block)
    found = influence.loss_gradients_by_block(*TRAIN)
    for block, g in scaled.items():
        close(found[block], g)
        assert influence.damping[block] == pytest.approx(dense.automatic_damping(g), rel=1e-9)
    own = sum(
        (g @ dense.datainf_matrix(g, influence.damping[b]) * g).sum(1) for b, g in scaled.items()
    )
    close(influence.self_influences(), own)


def test_compressed_rows_whose_bases_hold_all_gradients(after):
    model, adam, by_block = after
    settings = {"rows": "compressed", "rank": N, "basis_sample": N, "preconditioner": adam}
    influence = ExactInfluence(model, F.cross_entropy, **settings).fit(BATCHES)
    assert min(influence.blocks.widths.values()) > N
    rows, test = (scaled_rows(model, data, by_block) for data in (TRAIN, TEST))
    close(influence.training_influences(*TEST), expected(rows, test, dense.exact_matrix), 1e-7)


def test_the_gauss_newton_matrix_and_an_objective_of_test_samples(after):
    model, adam, by_block = after

    def asked(z, y):
        return -z.gather(1, y[:, None]).sum()

    settings = {"curvature": "gauss-newton", "test_objective": asked, "preconditioner": adam}
    influence = ExactInfluence(model, F.cross_entropy, 0.5, **settings).fit(BATCHES)
    x, y = TRAIN
    p = model(x).detach().softmax(1)
    at_each = [scaled_rows(model, (x, torch.full_like(y, k)), by_block) for k in range(4)]
    test, train = scaled_rows(model, TEST, by_block, asked), scaled_rows(model, TRAIN, by_block)
    total = 0
    for block, v in test.items():
        H = sum((p[:, k, None] * g[block]).T @ g[block] for k, g in enumerate(at_each)) / N
        total = total + v @ torch.linalg.solve(H + 0.5 * torch.eye(len(H)).double(), train[block].T)
    close(influence.training_influences(*TEST), total)


def test_perturbations_are_scaled_on_both_sides(after):
    model, adam, by_block = after
    influence = ExactInfluence(model, F.cross_entropy, preconditioner=adam).fit(BATCHES)
    rows, test = (scaled_rows(model, data, by_block) for data in (TRAIN, TEST))
    total = 0
    for block, names in BLOCKS.items():
        F_ = test[block] @ dense.exact_matrix(rows[block], influence.damping[block])
        mixed = dense.mixed_derivative(model, F.cross_entropy, TRAIN, names)
        total = total + torch.einsum("ia,jxa->ijx", F_ * by_block[block], mixed)
    close(influence.influences(*TEST, *TRAIN, mode="perturbation"), total)


def test_one_sample_and_more_queries_than_samples(after):
    model, adam, by_block = after
    one, many = samples(1, 5), samples(9, 6)
    influence = DataInfInfluence(model, F.cross_entropy, preconditioner=adam).fit([one])
    rows, test = (scaled_rows(model, data, by_block) for data in (one, many))
    close(influence.training_influences(*many), expected(rows, test, dense.datainf_matrix))


def test_parameters_whose_gradient_was_always_zero():
    """v = 0, so that ε alone is left."""
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 4)).double().eval()
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-4)
    (0.0 * model(TRAIN[0]).sum()).backward()
    optimizer.step()
    adam = AdamPreconditioner.from_optimizer(optimizer, model)
    influence = HessianFreeInfluence(model, F.cross_entropy, preconditioner=adam).fit(BATCHES)
    plain = HessianFreeInfluence(model, F.cross_entropy).fit(BATCHES)
    close(influence.training_influences(*TEST), 1e4 * plain.training_influences(*TEST))


def test_settings_of_groups_count_and_the_steps_of_each_parameter():
    model, optimizer = stepped(betas=(0.8, 0.9), eps=1e-2, steps=2)
    by_block = scales_by_block(model, optimizer, 2, betas=(0.8, 0.9), eps=1e-2)
    late = AdamPreconditioner.from_optimizer(optimizer, model)
    assert late.step == 2
    for name, scale in late.scales.items():
        block, names = next((b, n) for b, n in BLOCKS.items() if name in n)
        sizes = [late.scales[n].numel() for n in names]
        own = by_block[block].split(sizes)[names.index(name)]
        close(scale.flatten(), own)
    model[0].requires_grad_(False)  # one that stays behind
    F.cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()
    optimizer.step()
    v = optimizer.state[model[0].bias]["exp_avg_sq"]
    found = AdamPreconditioner.from_optimizer(optimizer, model)
    assert found.step == 3
    close(found.scales["0.bias"], scales(v, 2, betas=(0.8, 0.9), eps=1e-2))


def test_float32_models_and_copies(after):
    model, optimizer = stepped(model=network(), steps=3)
    narrow = pickle.loads(pickle.dumps(model)).float()
    adam = AdamPreconditioner.from_optimizer(optimizer, model)
    data = [(TRAIN[0].float(), TRAIN[1])]
    influence = DataInfInfluence(narrow, F.cross_entropy, preconditioner=adam).fit(data)
    copy = pickle.loads(pickle.dumps(influence))
    scores = copy.training_influences(TEST[0].float(), TEST[1])
    assert scores.dtype == torch.float32
    rows, test = (scaled_rows(model, d, scales_by_block(model, optimizer)) for d in (TRAIN, TEST))
    exact = expected(rows, test, dense.datainf_matrix)
    close(scores.double(), exact, 1e-3)


# Refusals


def lacking(optimizer, **settings):
    model, made = stepped(optimizer, **settings)
    return partial(AdamPreconditioner.from_optimizer, made, model)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lacking(torch.optim.SGD), "not torch's Adam.*optim=adamw_torch"),
        (lacking(torch.optim.Adafactor), "not torch's Adam: of '0.weight' it keeps col_var"),
        (lacking(torch.optim.RAdam), "not torch's Adam"),
        (lacking(torch.optim.NAdam), "not torch's Adam: of '0.weight' it keeps .*mu_product"),
        (lacking(torch.optim.Adamax), "not torch's Adam: of '0.weight' it keeps exp_avg, exp_inf"),
        (lacking(torch.optim.AdamW, amsgrad=True), "keeps .*max_exp_avg_sq"),
        (lacking(torch.optim.AdamW, steps=0), "has taken no step.*Read it after training"),
    ],
)
def test_other_optimizers_are_refused(build, message):
    with pytest.raises(OptimizerError, match=message):
        build()


def test_the_optimizer_of_another_model_has_no_state_of_this_one():
    _, optimizer = stepped()
    with pytest.raises(OptimizerError, match="that of another model"):
        AdamPreconditioner.from_optimizer(optimizer, network())


def test_a_state_that_is_not_finite():
    model, optimizer = stepped()
    optimizer.state[model[2].bias]["exp_avg_sq"][1] = torch.nan
    with pytest.raises(OptimizerError, match=r"'2\.bias' gives scales that are not finite"):
        AdamPreconditioner.from_optimizer(optimizer, model)


def test_parameters_in_blocks_without_a_state_are_named():
    model, optimizer = stepped(parameters=["0.weight", "2.weight"])
    adam = AdamPreconditioner.from_optimizer(optimizer, model)
    with pytest.raises(OptimizerError, match=r"no state of 2 parameters .*: 0\.bias, 2\.bias\. "):
        DataInfInfluence(model, F.cross_entropy, preconditioner=adam)
    weights = {"0": ["0.weight"], "2": ["2.weight"]}
    made = DataInfInfluence(model, F.cross_entropy, block_structure=weights, preconditioner=adam)
    assert made.fit(BATCHES).is_fitted


def test_a_state_of_other_shapes(after):
    wider = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()
    with pytest.raises(OptimizerError, match=r"'0.weight' has the shape \(5, 3\).*\(6, 3\)"):
        DataInfInfluence(wider, F.cross_entropy, preconditioner=after[1])


def test_ekfac_is_refused(after):
    model, adam, _ = after
    for kind in (EkfacInfluence, METHODS["ekfac"]):
        with pytest.raises(OptimizerError, match=r"EK-FAC rotates.*Use ExactInfluence"):
            kind(model, F.cross_entropy, preconditioner=adam)


@pytest.mark.parametrize("given", ["adam", {"0.weight": torch.ones(1)}])
def test_what_is_no_preconditioner_is_refused(given):
    with pytest.raises(OptimizerError, match=r"AdamPreconditioner\.from_optimizer.*; got"):
        DataInfInfluence(network(), F.cross_entropy, preconditioner=given)
