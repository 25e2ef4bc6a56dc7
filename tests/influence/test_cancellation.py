"""float32 models whose training rows are nearly parallel, so that the inverse cancels.

With λ = 0.1 ‖g‖²/d of a block of d parameters, v − c/n is v/(1 + 10 d) where v is along the rows:
of a block of 60,003 parameters nothing is left in float32.
"""

from functools import cache

import numpy as np
import pytest
import torch
import zarr
from pydvl.valuation import Dataset
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    approximation_error,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.valuation import DataInfValuation

WIDTH = 20_000
COPIES = {"one": (1, 0.0), "copies": (3, 0.0), "near copies": (3, 1e-4)}
"""How many training samples there are, and how far apart, as a share of their size."""
NAMES = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


@cache
def data(kind):
    """A model, its training samples, and queries: the first of these, and some that lie across."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, 4)).eval()
    n, apart = COPIES[kind]
    first = torch.randn(WIDTH)
    train = first + apart * torch.randn(n, WIDTH)
    across = 0.1 * first + torch.tensor([[1.0], [30.0]]) * torch.randn(2, WIDTH)
    test = torch.cat([train[:1], across])
    return model, (train, torch.zeros(n, dtype=int)), (test, torch.tensor([0, 1, 0]))


def rows(kind):
    """The float32 gradients of queries and training samples, which the formula takes as given."""
    model, train, test = data(kind)
    influence = DataInfInfluence(model, F.cross_entropy)
    return influence.loss_gradients_by_block(*test), influence.loss_gradients_by_block(*train)


def dampings(kind, share):
    """λ of each block as the given share of the automatic one."""
    return {b: share * dense.automatic_damping(g.double()) for b, g in rows(kind)[1].items()}


def exact(v, g, damping):
    """For each block the influences of the training samples."""
    return {b: dense.datainf_products(v[b], g[b], g[b], damping[b]) for b in v}


def close(actual, expected):
    actual = torch.as_tensor(np.asarray(actual))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("share", [1.0, 0.05])
@pytest.mark.parametrize("kind", COPIES)
def test_the_oracle_has_digits_to_spare_and_float32_has_none(kind, share):
    """The premise: what remains of the difference is below float32's rounding."""
    v, g = (side["0"] for side in rows(kind))
    λ = dampings(kind, share)["0"]
    assert λ / g.double().square().sum(1).mean() < 2e-6
    scores = dense.datainf_products(v, g, g, λ)
    narrow = (v - (v @ g.T / (λ + g.square().sum(1))) @ g / len(g)) / λ @ g.T
    assert ((narrow - scores).abs() / scores.abs()).max() > 0.01


def test_the_oracle_is_the_dense_one():
    generator = torch.Generator().manual_seed(0)
    v, g, k = (torch.randn(length, 4, generator=generator).double() for length in (2, 5, 3))
    expected = v @ dense.datainf_matrix(g, 0.3) @ k.T
    torch.testing.assert_close(dense.datainf_products(v, g, k, 0.3), expected)


@pytest.mark.parametrize("share", [1.0, 0.05])
@pytest.mark.parametrize("kind", COPIES)
def test_influences_of_float32_models(kind, share):
    model, train, test = data(kind)
    v, g = rows(kind)
    influence = DataInfInfluence(model, F.cross_entropy, dampings(kind, share)).fit([train])
    blocks = exact(v, g, influence.damping)
    scores = sum(blocks.values())
    assert influence.influences(*test, *train).dtype == torch.float32
    close(influence.influences(*test, *train), scores)
    close(influence.influences(*train, *test), scores.T)
    close(influence.training_influences(*test), scores)
    factors = influence.influence_factors(*test)
    close(influence.influences_from_factors(factors, *train), scores)
    by_block = influence.influence_factors_by_block(*test)
    for found in (
        influence.influences_by_block(*test, *train),
        influence.influences_from_factors_by_block(by_block, *train),
        influence.training_influences(*test, by_block=True),
    ):
        for block, expected in blocks.items():
            close(found[block], expected)
    selves = exact(g, g, influence.damping)
    close(influence.self_influences(), sum(selves.values()).diag())
    for block, found in influence.self_influences(by_block=True).items():
        close(found, selves[block].diag())
        assert (found >= 0).all()


@pytest.mark.parametrize("kind", ["one", "copies"])
def test_the_exact_inverse_of_copies_is_that_of_one(kind):
    """Whose answers therefore are DataInf's; its solution ends in such a difference too."""
    model, train, test = data(kind)
    v, g = rows(kind)
    influence = ExactInfluence(model, F.cross_entropy).fit([train])
    scores = sum(exact(v, g, influence.damping).values())
    close(influence.influences(*test, *train), scores)
    close(influence.training_influences(*test), scores)
    factors = influence.influence_factors(*test)
    close(influence.influences_from_factors(factors, *train), scores)
    selves = sum(exact(g, g, influence.damping).values()).diag()
    close(influence.self_influences(), selves)


@pytest.mark.parametrize("kind", ["one", "copies"])
def test_the_inverse_of_copies_has_no_error(kind):
    model, train, test = data(kind)
    found = approximation_error(DataInfInfluence(model, F.cross_entropy).fit([train]), *test)
    assert found.score_error < 1e-6
    assert found.errors.max() < 1e-6


def test_values_of_copies():
    model, train, test = data("near copies")
    v, g = rows("near copies")
    influence = DataInfInfluence(model, F.cross_entropy)
    method = DataInfValuation(influence, Dataset(*(side.numpy() for side in test)))
    found = method.fit(Dataset(*(side.numpy() for side in train))).result.values
    damping = dampings("near copies", 1.0)
    close(found, sum(exact(v, g, damping).values()).mean(0))


@pytest.mark.parametrize("kind", ["one", "copies"])
def test_perturbations_of_float32_models(kind):
    """Of the samples themselves, in one batch, so that their gradients are the very rows."""
    model, train, _ = data(kind)
    influence = DataInfInfluence(model, F.cross_entropy).fit([train])
    found = influence.influences(*train, *train, mode="perturbation")
    v = {
        b: dense.gradients(
            dense.in_float64(model), F.cross_entropy, (train[0].double(), train[1]), names
        )
        for b, names in NAMES.items()
    }
    factors = {
        b: g / (influence.damping[b] + g.square().sum(1, keepdim=True)) for b, g in v.items()
    }
    wide = DataInfInfluence(dense.in_float64(model), F.cross_entropy).fit(
        [(train[0].double(), train[1])]
    )
    expected = sum(
        wide.influences_from_factors_by_block(
            factors, train[0].double(), train[1], mode="perturbation"
        ).values()
    )
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


# Runs


def stored_rows(store, damping):
    """The rows as the store holds them: scale · h, block by block."""
    group = zarr.open_group(store)
    scales = torch.from_numpy(group["row_scales"][...]).double().unbind(1)
    pieces = [group[f"rows/{p}"][...] for p in range(len(InfluenceRun(store).plan.pieces))]
    parts = torch.from_numpy(np.hstack(pieces)).double().split(group["width"][...].tolist(), 1)
    return {b: s[:, None] * h for b, s, h in zip(damping, scales, parts, strict=True)}


def run(store, kind, share=1.0, **settings):
    model, train, test = data(kind)
    influence = DataInfInfluence(model, F.cross_entropy, dampings(kind, share))
    settings = {"self_influence": True, "progress": False, **settings}
    return run_influences(influence, [test], [train], store, **settings)


def rows_of(done, store, kind):
    """Of the queries as they are computed, of the training samples as the run took them."""
    v, g = rows(kind)
    return v, stored_rows(store, done.damping) if done.plan.rows == "zarr" else g


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("kept", ["memory", "zarr", "recompute"])
def test_runs_of_float32_models(tmp_path, kept, kind):
    done = run(tmp_path / "run.zarr", kind, 0.05, rows=kept)
    v, g = rows_of(done, tmp_path / "run.zarr", kind)
    scores = sum(exact(v, g, done.damping).values())
    assert done.scores.dtype == done.self_influence().dtype == np.float32
    close(done.scores[...], scores)
    close(done.mean_influence(), scores.mean(0))
    close(done.self_influence(), sum(exact(g, g, done.damping).values()).diag())
    done.check()


@pytest.mark.parametrize("kept", ["memory", "zarr", "recompute"])
@pytest.mark.parametrize(
    "settings", [{"by_block": True}, {"top_k": 2}, {"query_groups": [0, 1, 0]}], ids=str
)
def test_other_results_of_runs(tmp_path, kept, settings):
    kind = "near copies"
    done = run(tmp_path / "run.zarr", kind, rows=kept, **settings)
    v, g = rows_of(done, tmp_path / "run.zarr", kind)
    if_grouped = {b: torch.stack([V.double()[[0, 2]].mean(0), V[1].double()]) for b, V in v.items()}
    queries = if_grouped if "query_groups" in settings else v
    blocks = exact(queries, g, done.damping)
    scores = sum(blocks.values())
    close(done.mean_influence(), scores.mean(0))
    close(done.top(2)[1], scores.topk(2).values)
    close(done.top(2, most="harmful")[1], -(-scores).topk(2).values)


@pytest.mark.parametrize("kind", COPIES)
def test_further_queries_and_late_self_influences(tmp_path, kind):
    done = run(tmp_path / "run.zarr", kind, rows="zarr", self_influence=False)
    model, _, test = data(kind)
    others = test[0].flip(0), test[1].flip(0)
    more = run_influences(
        DataInfInfluence(model, F.cross_entropy),
        others,
        done,
        tmp_path / "more.zarr",
        progress=False,
    )
    v, g = rows_of(done, tmp_path / "run.zarr", kind)
    close(more.scores[...], sum(exact(v, g, done.damping).values()).flip(0))
    close(
        compute_self_influence(more, progress=False), sum(exact(g, g, done.damping).values()).diag()
    )


@pytest.mark.parametrize("kept", ["memory", "zarr"])
def test_exact_runs_of_copies(tmp_path, kept):
    model, train, test = data("copies")
    influence = ExactInfluence(model, F.cross_entropy)
    settings = {"rows": kept, "self_influence": True, "progress": False}
    done = run_influences(influence, [test], [train], tmp_path / "run.zarr", **settings)
    v, g = rows_of(done, tmp_path / "run.zarr", "copies")
    close(done.scores[...], sum(exact(v, g, done.damping).values()))
    close(done.self_influence(), sum(exact(g, g, done.damping).values()).diag())
