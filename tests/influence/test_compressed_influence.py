"""Influences from compressed rows against formulas in the whole space, in float64."""

import pickle
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import (
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    LissaInfluence,
    SourceError,
    approximation_error,
)

RANK, SAMPLE = 4, 7
LISSA = {"iterations": 4000, "tolerance": 1e-12}
KINDS = {
    "DataInf": DataInfInfluence,
    "exact": ExactInfluence,
    "LiSSA": lambda *a, **k: LissaInfluence(*a, **k, **LISSA),
    "Hessian-free": HessianFreeInfluence,
    "scaled": lambda *a, **k: HessianFreeInfluence(*a, **k, scaled=True),
}


@cache
def problem(structure="module", n=11, dtype=torch.float64):
    return Problem(dense.exact_matrix, structure, n, dtype)


def fitted(p, kind="exact", data=None, rank=RANK, sample=SAMPLE, **settings):
    told = {"rank": rank, "basis_sample": sample, **settings}
    influence = KINDS[kind](p.model, p.loss, block_structure=p.structure, rows="compressed", **told)
    return influence.fit(p.batches() if data is None else data)


def projectors(rows, rank=RANK, sample=SAMPLE, seed=0):
    """For each block the projection on the leading directions of the chosen samples' rows."""
    found = {}
    for block, g in rows.items():
        chosen = np.random.default_rng(seed).permutation(len(g))[:sample]
        directions = np.linalg.svd(g[chosen].numpy(), full_matrices=False)[2][:rank]
        eye = np.eye(g.shape[1])
        found[block] = torch.from_numpy(directions.T @ directions if g.shape[1] > rank else eye)
    return found


def inverse(kind, g, parts, λ):
    """The inverse of a block from its whole rows g and their projections."""
    n, d = g.shape
    eye = torch.eye(d, dtype=g.dtype)
    if kind in ("exact", "LiSSA"):
        return dense.exact_matrix(parts, λ)
    if kind == "DataInf":
        weights = 1 / (λ + g.square().sum(1))  # of whole rows
        return (eye - torch.einsum("i,ia,ib->ab", weights, parts, parts) / n) / λ
    return eye / λ if kind == "scaled" else eye


def influences(p, kind, left, right, projections):
    total, fit_rows = 0, p.rows(p.fitted)
    v, g = p.rows(left), p.rows(right)
    for block, P in projections.items():
        λ = dense.automatic_damping(fit_rows[block])  # of whole rows and the block's own width
        M = inverse(kind, fit_rows[block], fit_rows[block] @ P, λ)
        total = total + v[block] @ P @ M @ P @ g[block].T
    return total


# Values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_influences_are_those_of_the_formulas(structure, kind):
    p = problem(structure)
    influence, P = fitted(p, kind), projectors(p.rows(p.fitted))
    expected = influences(p, kind, p.test, p.fitted, P)
    close(influence.training_influences(*p.test), expected)
    close(influence.influences(*p.test, *p.fitted), expected)
    close(influence.influences(*p.test, *p.train), influences(p, kind, p.test, p.train, P))
    close(influence.influences(*p.train, *p.test), influences(p, kind, p.train, p.test, P))
    own = influences(p, kind, p.fitted, p.fitted, P).diag()
    close(influence.self_influences(), own)
    close(influence.self_influences(p.batches()), own)
    factors = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(factors, *p.fitted), expected)


@pytest.mark.parametrize("seed", [0, 1, 5])
@pytest.mark.parametrize(("rank", "sample"), [(1, 1), (3, 11), (6, 4), (23, 30), (21, 9)])
def test_any_rank_sample_and_seed(rank, sample, seed):
    p = problem()
    P = projectors(p.rows(p.fitted), rank, sample, seed)
    influence = fitted(p, "DataInf", rank=rank, sample=sample, basis_seed=seed)
    close(influence.training_influences(*p.test), influences(p, "DataInf", p.test, p.fitted, P))


def test_seeds_choose_other_samples():
    p = problem()
    first, other = (fitted(p, basis_seed=s).training_influences(*p.test) for s in (0, 1))
    assert not torch.allclose(first, other, rtol=1e-3)


def test_coordinates_norms_damping_and_energy():
    p = problem()
    influence, rows, P = fitted(p), p.rows(p.fitted), projectors(p.rows(p.fitted))
    found = list(influence.training_gradients_by_block())
    for block, g in rows.items():
        close(torch.cat([chunk[block] for chunk in found]), g @ P[block])
        share = (g @ P[block]).square().sum() / g.square().sum()
        assert 0.2 < share < 0.999  # premise
        assert influence.energy[block] == pytest.approx(float(share), rel=1e-9)
        λ = dense.automatic_damping(g)
        assert influence.damping[block] == pytest.approx(float(λ), rel=1e-12)


def test_a_wrong_basis_and_norms_of_coordinates_are_told_apart():
    """Negative control."""
    p = problem()
    rows, P = p.rows(p.fitted), projectors(p.rows(p.fitted))
    found = fitted(p, "DataInf").training_influences(*p.test)
    other = projectors(rows, seed=1)
    with pytest.raises(AssertionError):  # the basis of one block is another
        close(found, influences(p, "DataInf", p.test, p.fitted, P | {"0": other["0"]}), 1e-3)
    total = 0
    for block, g in rows.items():
        C, λ = g @ P[block], dense.automatic_damping(g)
        total = total + p.rows(p.test)[block] @ P[block] @ inverse("DataInf", C, C, λ) @ C.T
    with pytest.raises(AssertionError):  # weights are those of coordinates
        close(found, total, 1e-3)


@pytest.mark.parametrize("kind", ["DataInf", "exact", "Hessian-free"])
def test_a_basis_of_all_rows_loses_nothing_in_float32(kind):
    p = problem("full", n=30, dtype=torch.float32)
    whole = KINDS[kind](p.model, p.loss, block_structure="full", rows="memory").fit(p.batches())
    expected = whole.training_influences(*p.test)
    compressed = fitted(p, kind, rank=30, sample=30)
    assert compressed.energy[""] == pytest.approx(1.0, abs=1e-6)
    close(compressed.training_influences(*p.test), expected, 1e-6)
    close(compressed.self_influences(), whole.self_influences(), 1e-6)
    with pytest.raises(AssertionError):
        close(fitted(p, kind, rank=20, sample=30).training_influences(*p.test), expected, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_no_more_parameters_are_kept_whole(kind):
    p = problem()
    whole = KINDS[kind](p.model, p.loss, rows="memory").fit(p.batches())
    compressed = fitted(p, kind, rank=24)
    close(compressed.training_influences(*p.test), whole.training_influences(*p.test), 1e-11)
    assert compressed.energy == {"0": 1.0, "2": 1.0}


# The unpleasant


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample(kind):
    p = problem(n=1)
    P = projectors(p.rows(p.fitted))
    expected = influences(p, kind, p.test, p.fitted, P)
    close(fitted(p, kind).training_influences(*p.test), expected)


@pytest.mark.parametrize("kind", ["DataInf", "exact"])
def test_copies_and_samples_without_gradient(kind):
    """The basis has more directions than the rows."""
    p = problem()
    x, y = p.fitted
    data = x[[0, 0, 0, 1, 1, 1]], y[[0, 0, 0, 1, 1, 1]]
    zero = data[0].clone()
    zero[3:] = torch.inf  # tanh saturates: the first layer has no gradient
    zero = zero.clamp(max=1e8)
    for given in (data, (zero, data[1])):
        copies = Problem(dense.exact_matrix)
        copies.fitted = given
        P = projectors(copies.rows(given))
        found = fitted(copies, kind, [given]).training_influences(*p.test)
        close(found, influences(copies, kind, p.test, given, P), 1e-8)


def test_a_block_without_gradients():
    p = Problem(dense.exact_matrix)
    with torch.no_grad():
        p.model[2].weight.zero_()  # no gradient reaches the first layer
    influence = ExactInfluence(
        p.model, p.loss, {"0": 1.0}, rows="compressed", rank=RANK, basis_sample=SAMPLE
    ).fit(p.batches())
    assert torch.equal(
        influence.influences_by_block(*p.test, *p.train)["0"], torch.zeros(4, 6).double()
    )
    assert influence.energy["0"] == 1.0


@pytest.mark.parametrize("sizes", [[11], [4, 4, 3], [5, 5, 1], [1] * 11])
def test_batches_do_not_matter(sizes):
    p = problem()
    expected = fitted(p, "DataInf").training_influences(*p.test)
    close(fitted(p, "DataInf", p.cut(sizes)).training_influences(*p.test), expected)
    split = fitted(p, "DataInf", p.cut(sizes), batch_size=2)
    close(split.training_influences(*p.test), expected)


def test_a_shuffled_loader_serves_the_inverse():
    p = problem()
    data = DataLoader(TensorDataset(*p.fitted), 4, shuffle=True)
    P = projectors(p.rows(p.fitted), rank=15, sample=11)
    found = fitted(p, "DataInf", data, rank=15, sample=11).influences(*p.test, *p.train)
    close(found, influences(p, "DataInf", p.test, p.train, P))


def test_another_damping_keeps_the_rows():
    p = problem()
    influence = fitted(p, "DataInf").with_regularization("auto", damping_scale=10)
    twin = fitted(p, "DataInf", damping_scale=10)
    assert influence.damping == twin.damping
    assert torch.equal(influence.training_influences(*p.test), twin.training_influences(*p.test))


def test_moves_and_pickles():
    p = problem()
    influence = fitted(p, "DataInf")
    expected = influence.training_influences(*p.test)
    assert torch.equal(influence.to("cpu").training_influences(*p.test), expected)
    copy = pickle.loads(pickle.dumps(influence))
    assert torch.equal(copy.training_influences(*p.test), expected)


def test_residuals_are_those_of_coordinates():
    p = problem()
    influence = fitted(p, "LiSSA")
    assert all(float(r.max()) <= 1e-12 for r in influence.residuals_by_block(*p.test).values())


# What is refused


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rank": 0}, 'rank must be an integer of at least 1 or "auto", got 0'),
        ({"rank": True}, 'rank must be an integer of at least 1 or "auto", got True'),
        ({"basis_sample": 0}, "basis_sample must be an integer of at least 1, got 0"),
        ({"basis_sample": True}, "basis_sample must be an integer of at least 1, got True"),
        ({"basis_seed": -1}, "basis_seed must be an integer of at least 0, got -1"),
        ({"rows": "memory", "rank": 3}, 'those of compressed rows. Use rows="compressed"'),
        ({"rows": "auto", "basis_sample": 3}, 'those of compressed rows. Use rows="compressed"'),
        ({"curvature": "gauss-newton"}, "this curvature takes other rows"),
        ({"rows": "squeezed"}, '"compressed" or "auto", got \'squeezed\''),
    ],
)
def test_settings_are_checked(settings, match):
    p = problem()
    with pytest.raises(SourceError, match=match):
        DataInfInfluence(p.model, p.loss, **{"rows": "compressed", **settings})


def test_ekfac_refuses_them():
    p = problem()
    with pytest.raises(SourceError, match="Use ExactInfluence with rows"):
        EkfacInfluence(p.model, p.loss, rows="compressed")


def test_inverses_are_not_compared_over_them():
    p = problem()
    with pytest.raises(SourceError, match="over whole rows, and these are compressed"):
        approximation_error(fitted(p, "DataInf"), *p.test)


@pytest.mark.parametrize(
    ("data", "match"),
    [([], "is empty"), (iter([]), "is an iterator"), (3, "is a int. Pass a DataLoader")],
)
def test_data_that_cannot_serve(data, match):
    with pytest.raises(SourceError, match=match):
        fitted(problem(), data=data)


def test_data_of_another_length_each_time():
    p = problem()

    class Growing:
        length = 4

        def __iter__(self):
            self.length += 1
            return iter([tuple(t[: self.length] for t in p.fitted)])

    with pytest.raises(SourceError, match="yielded 7 samples where the first pass had 5"):
        fitted(p, data=Growing())
