"""Runs with compressed rows: what is stored, scores, errors of compression, refusals, the plan."""

from functools import cache

import numpy as np
import pytest
import torch
import zarr
from scipy.stats import spearmanr
from torch.nn import functional as F

import dense
import method_runs
import piece_runs
from compressed_runs import ASKED, RANK, SAMPLE, loader, run
from method_runs import MATRICES, datainf, exact
from piece_runs import BLOCKS, WIDTHS, M, N, network, rows_of
from pydvl_datainf import (
    DampingError,
    EkfacInfluence,
    ExactInfluence,
    LissaInfluence,
    ModelError,
    PlanError,
    SourceError,
)
from pydvl_datainf.inverse import compression
from pydvl_datainf.inverse.methods import DATAINF, EXACT
from pydvl_datainf.runner.cutting import make_plan
from pydvl_datainf.runner.sizing import RunSize
from small_runs import close, samples

KEPT = [16, 20, 20, 20, 20]


@cache
def chosen(sample=SAMPLE, seed=0):
    return np.random.default_rng(seed).permutation(N)[:sample]


def bases(store):
    """For each block its basis, as stored; the identity where rows are whole."""
    group = zarr.open_group(store, mode="r")
    wide = {b for b, d in enumerate(WIDTHS) if d > RANK}
    return {
        block: torch.from_numpy(group[f"bases/{b}"][...]) if b in wide else torch.eye(d).double()
        for b, (block, d) in enumerate(zip(BLOCKS, WIDTHS, strict=True))
    }


def coordinates(store):
    return method_runs.stored_rows(store, dict(zip(BLOCKS, KEPT, strict=True)))


def expected(store, build, m):
    """Scores (m, blocks, n) and self-influences, by the formulas for what is stored."""
    B, C, G, V = bases(store), coordinates(store), rows_of(N, 1), rows_of(m, 2)
    scores, own = [], 0
    for block, c in C.items():
        λ = dense.automatic_damping(G[block])  # of whole rows and the block's own width
        M = MATRICES[build](c, λ)
        if build is datainf:
            w = 1 / (λ + G[block].square().sum(1))  # of whole rows
            M = (torch.eye(c.shape[1]) - torch.einsum("i,ia,ib->ab", w, c, c) / N) / λ
        scores.append(V[block] @ B[block].T @ M @ c.T)
        own = own + (c @ M * c).sum(1)
    return torch.stack(scores, 1).numpy(), own.numpy()


# What is stored


def test_bases_coordinates_norms_and_energy(tmp_path):
    done = run(tmp_path / "run.zarr")
    B, C, G = bases(tmp_path / "run.zarr"), coordinates(tmp_path / "run.zarr"), rows_of(N, 1)
    outside = done.store.read("outside_norms")
    for b, (block, g) in enumerate(G.items()):
        directions = np.linalg.svd(g[chosen()].numpy(), full_matrices=False)[2][:RANK]
        P = torch.from_numpy(directions.T @ directions)
        P = torch.eye(WIDTHS[b]).double() if WIDTHS[b] <= RANK else P
        torch.testing.assert_close(B[block].T @ B[block], P, rtol=1e-9, atol=1e-9)
        c = g @ B[block].T
        assert float((C[block] - c).norm() / c.norm()) < 2**-11  # half precision
        norms = c.square().sum(1)
        close(C[block].square().sum(1).numpy(), norms.numpy(), 1e-12)
        left = (g.square().sum(1) - norms).clamp_min(0)
        np.testing.assert_allclose(outside[:, b], left, rtol=1e-6, atol=1e-12 * float(norms.max()))
        share = float(norms.sum() / g.square().sum())
        assert done.energy[block] == pytest.approx(share, rel=1e-9)
        assert done.damping[block] == pytest.approx(float(dense.automatic_damping(g)), rel=1e-9)
    assert 0.5 < min(done.energy.values()) < 1 - 1e-6  # premise: something is outside
    close(done.store.read("squared_norms"), torch.stack([g.square().sum(1) for g in G.values()], 1))
    assert list(done.widths.values()) == WIDTHS
    assert done.plan.n_parameters == sum(KEPT)
    done.check()


def test_no_gradient_is_computed_twice(tmp_path):
    done = run(tmp_path / "run.zarr")
    assert done.attrs["gradients"] == N + M + M  # test samples once more, to compare
    assert not (tmp_path / "run.zarr" / "work").exists()


# Scores


@pytest.mark.parametrize("m", [2, M])
@pytest.mark.parametrize("build", MATRICES)
def test_scores_are_those_of_the_formulas(tmp_path, build, m):
    store = tmp_path / "run.zarr"
    done = run(store, build, m, self_influence=True)
    assert len(done.plan.pieces) == {2: 5, M: 1}[m]
    scores, own = expected(store, build, m)
    close(done.scores[:], scores.sum(1))
    close(done.self_influence(), own)


def test_norms_of_coordinates_are_told_apart(tmp_path):
    """Negative control: DataInf's weights, and λ by the rank."""
    store = tmp_path / "run.zarr"
    done, wrong = run(store, rank=4), {}
    C = method_runs.stored_rows(store, {b: min(4, d) for b, d in zip(BLOCKS, WIDTHS, strict=True)})
    V = {b: v @ zarr.open_group(store)[f"bases/{i}"][...].T for i, (b, v) in enumerate(V_of())}
    V = {b: torch.as_tensor(v) for b, v in V.items()}
    λ = {b: dense.automatic_damping(g) for b, g in rows_of(N, 1).items()}
    wrong["weights"], _ = method_runs.influences_by_block(datainf, V, C, λ)
    wrong["damping"], _ = method_runs.influences_by_block(
        datainf, V, C, {b: dense.automatic_damping(c) for b, c in C.items()}
    )
    for scores in wrong.values():
        with pytest.raises(AssertionError):
            close(done.scores[:], scores.sum(1), 1e-3)


def V_of():
    return [(b, v.numpy()) for b, v in rows_of(M, 2).items()]


def test_by_block_top_and_groups(tmp_path):
    store = tmp_path / "run.zarr"
    by_block = run(store, exact, by_block=True)
    scores, _ = expected(store, exact, M)
    close(by_block.scores[:], scores)
    top = run(tmp_path / "top.zarr", exact, top_k=3)
    close(top.store.read("top_scores")[:, 0], -np.sort(-scores.sum(1), axis=1)[:, :3])
    groups = run(tmp_path / "groups.zarr", exact, query_groups=list("abababa"))
    close(groups.scores[:][0], scores.sum(1)[::2].mean(0))


def test_lissa_comes_to_the_exact_scores(tmp_path):
    def build(kind, **settings):
        return lambda model: kind(model, F.cross_entropy, damping_scale=1000, **settings)

    lissa = build(LissaInfluence, iterations=200, tolerance=1e-9)
    found = run(tmp_path / "lissa.zarr", lissa)
    close(found.scores[:], run(tmp_path / "exact.zarr", build(ExactInfluence)).scores[:], 1e-7)


def test_the_comparison_with_the_exact_inverse_is_over_coordinates(tmp_path):
    store = tmp_path / "run.zarr"
    found = run(store, exact_sample=N, rank=4).approximation_error
    whole = piece_runs.run(tmp_path / "whole.zarr", exact_sample=N).approximation_error
    assert (found.n, found.m) == (N, M)
    assert found.rank_correlation != whole.rank_correlation
    lossless = run(tmp_path / "all.zarr", exact_sample=N, rank=204).approximation_error
    assert lossless.errors == pytest.approx(whole.errors, rel=1e-9)


def test_blocks_of_no_more_parameters_are_as_in_a_run_with_whole_rows(tmp_path):
    done = run(tmp_path / "run.zarr", rank=204, m=2)
    whole = piece_runs.run(tmp_path / "whole.zarr", test=loader(2), memory=ASKED["memory"])
    assert done.plan == whole.plan
    close(done.scores[:], whole.scores[:])
    assert set(done.energy.values()) == {1.0}


# What compression changes


@pytest.mark.parametrize("checked", [64, 2])
@pytest.mark.parametrize("build", [datainf, exact])
def test_the_error_is_that_of_influences_over_the_rows_that_were_kept(
    tmp_path, monkeypatch, build, checked
):
    monkeypatch.setattr(compression, "CHECKED", checked)
    done = run(tmp_path / "run.zarr", build, rank=3, basis_sample=10)
    order = np.random.default_rng(0).permutation(N)
    kept = sorted({*order[:10], *order[-checked:]})
    asked = [kept.index(i) for i in sorted(order[-checked:])]
    assert len(kept) == {64: N, 2: 12}[checked]
    S = T = 0
    for block, g in rows_of(N, 1).items():
        v, λ = rows_of(M, 2)[block], dense.automatic_damping(g)
        directions = np.linalg.svd(g[order[:10]].numpy(), full_matrices=False)[2][:3]
        P = torch.from_numpy(directions.T @ directions)
        rows, parts = g[kept], g[kept] @ P
        T = T + v @ MATRICES[build](rows, λ) @ rows[asked].T
        M_ = MATRICES[exact](parts, λ)
        if build is datainf:
            w = 1 / (λ + rows.square().sum(1))
            M_ = (torch.eye(len(P)) - torch.einsum("i,ia,ib->ab", w, parts, parts) / len(kept)) / λ
        S = S + v @ P @ M_ @ parts[asked].T
    found = done.compression_error
    assert found.score_error == pytest.approx(float((S - T).norm() / T.norm()), rel=1e-8)
    ranks = [spearmanr(s, t).statistic for s, t in zip(S, T, strict=True)]
    assert found.rank_correlation == pytest.approx(np.mean(ranks), rel=1e-9)
    assert found.score_error > 0.05  # premise


def test_the_error_of_what_loses_nothing_is_none(tmp_path):
    found = run(tmp_path / "run.zarr", exact, rank=204).compression_error
    assert found.score_error < 1e-12
    assert found.rank_correlation == 1
    assert piece_runs.run(tmp_path / "whole.zarr").compression_error is None


# The unpleasant


def test_one_sample_and_a_sample_of_more_than_there_are(tmp_path):
    one = method_runs.loader(samples(1, 1), 5)
    done = run(tmp_path / "one.zarr", exact, train=one, tile=None)
    assert done.compression_error.rank_correlation == 1
    g, v = rows_of(1, 1), rows_of(M, 2)
    λ = {b: dense.automatic_damping(rows) for b, rows in g.items()}
    scores, _ = method_runs.influences_by_block(exact, v, g, λ)  # one row is in its own basis
    close(done.scores[:], scores.sum(1), 2e-3)  # half precision
    more = run(tmp_path / "more.zarr", basis_sample=500)
    assert more.attrs["fingerprint"]["compression"]["basis_sample"] == N


def test_a_gradient_that_is_not_finite_is_named_by_its_sample(tmp_path):
    for position in (int(chosen()[0]), 22):
        x, y = samples(N, 1)
        x[position, 1] = torch.nan
        with pytest.raises(ModelError, match=f"Position {position} of the training data"):
            run(tmp_path / f"{position}.zarr", train=method_runs.loader((x, y), 5))


def test_a_block_without_gradient_is_refused_as_ever(tmp_path):
    with pytest.raises(DampingError, match="are zero up to rounding"):
        run(tmp_path / "run.zarr", lambda model: datainf(model=dead()))


def dead():
    model = network()
    with torch.no_grad():
        model[8].weight.zero_()
    return model


# What is refused


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"rank": 0}, PlanError, 'rank must be an integer of at least 1 or "auto", got 0'),
        ({"basis_sample": -1}, PlanError, "basis_sample must be an integer of at least 1"),
        ({"rows": "zarr"}, PlanError, "are those of compressed rows"),
        ({"memory": 3000}, PlanError, "bytes of memory are too few"),
    ],
)
def test_settings_are_checked(tmp_path, settings, error, match):
    with pytest.raises(error, match=match):
        run(tmp_path / "run.zarr", **settings)
    assert not (tmp_path / "run.zarr").exists()


def test_ekfac_refuses_compressed_rows(tmp_path):
    with pytest.raises(SourceError, match="Use ExactInfluence with rows"):
        run(tmp_path / "run.zarr", lambda model: EkfacInfluence(model, F.cross_entropy))


# The plan


def sized(**settings):
    usual = {"n": 10**5, "m": 100, "m_samples": 100, "itemsize": 4, "longest": 8, "method": EXACT}
    return RunSize(**{"widths": [256] * 28, **usual, **settings})


def test_bases_count_towards_memory():
    bases = {"whole": [32768] * 28, "bases": [(256, 32768)] * 28, "basis_sample": 512}
    asked = sized(**bases)
    assert asked.basis_bytes == 4 * 256 * 32768 * 29
    needed = asked.basis_bytes
    make_plan(asked, memory=4 * needed, rows="zarr")
    with pytest.raises(PlanError, match=r"takes 3,670,016, and with rows='compressed' the smal"):
        make_plan(asked, memory=needed, rows="zarr")
    make_plan(sized(), memory=needed, rows="zarr")  # without them it is enough
    assert asked.learning > 512 * 32768 * (4 + 8 + 8)
    large = sized(method=DATAINF, **{**bases, "basis_sample": 10**5})
    with pytest.raises(PlanError, match=r"learning the bases takes .*: a smaller basis_sample or"):
        make_plan(large, memory=10**10, rows="zarr")
