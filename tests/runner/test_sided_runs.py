"""Runs behind side bases: what is stored, scores, what compression changes, and refusals."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

import dense
import method_runs
import small_runs
from fitted import close
from pydvl_datainf import (
    AdamPreconditioner,
    DataInfInfluence,
    ExactInfluence,
    InfluenceRun,
    ModelError,
    PlanError,
    StoreExistsError,
    run_influences,
)
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.methods import EXACT
from pydvl_datainf.runner.cutting import make_plan
from pydvl_datainf.runner.sizing import RunSize, moment_bytes
from sided_runs import (
    ASKED,
    SMALL,
    built,
    built_small,
    fitted_small,
    run,
    run_small,
    stored_bases,
    stored_coordinates,
    stored_sides,
    widths,
)
from stored_transposed import transposed
from wide_layers import (
    LARGE,
    RANK,
    SAMPLE,
    SHARE,
    M,
    N,
    Rooted,
    batches,
    directions,
    problem,
)

KEPT = {"tokens.layer": (6, 5), "tokens.plain": (5, 6), "image": (4, 5), "head": (2, 10)}


KINDS = [ExactInfluence, DataInfInfluence]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Runs by each method that are never changed."""
    folder = tmp_path_factory.mktemp("sided")
    for kind in KINDS:
        run(folder / kind.__name__, kind, self_influence=True)
    return {kind: folder / kind.__name__ for kind in KINDS}


@pytest.fixture(scope="module")
def whole(stores):
    return stores[DataInfInfluence]


def inverse(kind, C, G, λ):
    """That of a method over coordinates, with the weights of whole rows."""
    eye = torch.eye(C.shape[1], dtype=C.dtype)
    if kind is ExactInfluence:
        return dense.exact_matrix(C, λ)
    weights = 1 / (λ + G.square().sum(1))
    return (eye - torch.einsum("i,ia,ib->ab", weights, C, C) / len(C)) / λ


# What is stored


def test_bases_coordinates_norms_and_energy(whole):
    done, (model, _, _, rows, _) = InfluenceRun(whole), problem()
    expected, found = directions(model, rows), stored_bases(whole)
    squares, outside = (done.store.read(name) for name in ("squared_norms", "outside_norms"))
    for b, (block, g) in enumerate(rows.items()):
        B, C = found[block], stored_coordinates(whole)[block]
        close(B @ B.T, torch.eye(RANK).double())
        close(B.T @ B, expected[block].T @ expected[block])
        c = g @ B.T
        assert float((C - c).norm(dim=1).div(c.norm(dim=1)).max()) < 2**-10  # half precision
        close(C.norm(dim=1), c.norm(dim=1))
        norms = g.square().sum(1)
        close(squares[:, b], norms)
        np.testing.assert_allclose(
            outside[:, b], norms - c.square().sum(1), rtol=0, atol=1e-9 * float(norms.max())
        )
        share = float(c.square().sum() / norms.sum())
        assert 0.1 < share < 0.98  # premise
        assert done.energy[block] == pytest.approx(share, rel=1e-9)
        assert done.damping[block] == pytest.approx(float(dense.automatic_damping(g)), rel=1e-9)
    assert done.side_widths == KEPT
    assert done.ranks == dict.fromkeys(KEPT, RANK)
    assert list(done.widths.values()) == list(widths().values())
    assert not (whole / "work").exists()
    done.check()


def test_gradients_of_the_sample_are_computed_twice(whole):
    """Those of test samples once more, to compare."""
    assert InfluenceRun(whole).attrs["gradients"] == N + SAMPLE + M + M


# Scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_formulas(stores, kind):
    done, store = InfluenceRun(stores[kind]), stores[kind]
    *_, rows, tests = problem()
    B, C, scores, own = stored_bases(store), stored_coordinates(store), 0, 0
    for block, c in C.items():
        inverted = inverse(kind, c, rows[block], done.damping[block])
        scores = scores + tests[block] @ B[block].T @ inverted @ c.T
        own = own + (c @ inverted * c).sum(1)
    close(done.scores[:], scores)
    close(done.self_influence(), own)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_fit_in_memory(stores, kind):
    model, train, test, *_ = problem()
    for sides, is_same in ((SHARE, True), (0.4, False)):  # the latter a negative control
        settings = {**ASKED, "sides": sides}
        fitted = kind(model, F.cross_entropy, **settings).fit(batches(*train))
        expected = fitted.training_influences(*test)
        largest = float(
            (torch.from_numpy(InfluenceRun(stores[kind]).scores[:]) - expected).abs().max()
        )
        assert (largest < 2e-3 * float(expected.abs().max())) == is_same  # half precision


def test_weights_that_are_stored_transposed(whole, tmp_path):
    """All but the order of numbers is that of a run of the model whose weights are not."""
    model, train, test, *_ = problem()
    settings = {**ASKED, "tile": (2, 8), "memory": "1MiB"}
    influence = DataInfInfluence(transposed(model), F.cross_entropy)
    done = run_influences(influence, [test], batches(*train), tmp_path / "run", **settings)
    same = InfluenceRun(whole)
    swapped = {b: k if b in ("tokens.plain", "image") else k[::-1] for b, k in KEPT.items()}
    assert done.side_widths == swapped
    assert list(done.damping.values()) == pytest.approx(list(same.damping.values()), rel=1e-9)
    assert list(done.energy.values()) == pytest.approx(list(same.energy.values()), rel=1e-9)
    expected = same.scores[:]
    assert abs(done.scores[:] - expected).max() < 2e-3 * abs(expected).max()  # half precision


def test_coordinates_of_adam(tmp_path):
    model, train, test, *_ = problem()
    scales = {name: torch.rand_like(p.detach()) + 0.5 for name, p in model.named_parameters()}
    settings = {"preconditioner": AdamPreconditioner(scales, 1), **ASKED}
    fitted = ExactInfluence(model, F.cross_entropy, **settings).fit(batches(*train))
    usual = {"memory": "1MiB", "progress": False, **ASKED}
    done = run_influences(fitted, [test], batches(*train), tmp_path / "run.zarr", **usual)
    close(done.scores[:], fitted.training_influences(*test), 2e-3)


# What compression changes


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_against_rows_behind_side_bases(stores, kind):
    done, (*_, rows, tests) = InfluenceRun(stores[kind]), problem()
    bases = stored_bases(stores[kind])
    S, T = 0, 0  # all samples are checked, since there are few
    for block, Q in stored_sides(stores[kind]).items():
        g, B, v, λ = rows[block], bases[block], tests[block], done.damping[block]
        small, c = g @ Q.T, g @ B.T
        T = T + v @ Q.T @ inverse(kind, small, g, λ) @ small.T
        S = S + v @ B.T @ inverse(kind, c, g, λ) @ c.T
    found = done.compression_error
    assert found.score_error == pytest.approx(float((S - T).norm() / T.norm()), rel=1e-8)
    ranks = [spearmanr(s, t).statistic for s, t in zip(S, T, strict=True)]
    assert found.rank_correlation == pytest.approx(np.mean(ranks), rel=1e-9)
    assert found.score_error > 0.01  # premise


# The unpleasant


def test_one_sample_and_more_queries(tmp_path):
    one = small_runs.loader(1, 1, 5)
    done = run_small(tmp_path / "run.zarr", train=one, tile=None)
    close(done.scores[:], fitted_small(one), 2e-3)
    assert done.compression_error.rank_correlation == 1


def test_layers_that_are_too_small_keep_whole_rows(tmp_path):
    """Behind sides an image has 20 numbers, and so has the head."""
    some = run(tmp_path / "some.zarr", rank=21, basis_sample=22)
    assert list(some.side_widths) == ["tokens.layer", "tokens.plain"]
    assert [name for name in some.store.layouts if name.startswith("sides/")] == [
        "sides/0",
        "sides/1",
    ]
    assert some.store.layouts["bases/2"].shape == (21, 72)
    model, train, test, *_ = problem()
    settings = {**ASKED, "rank": 21, "basis_sample": 22}
    fitted = ExactInfluence(model, F.cross_entropy, **settings).fit(batches(*train))
    close(some.scores[:], fitted.training_influences(*test), 2e-3)


def test_where_no_layer_is_wide_the_bits_are_those_without_sides(tmp_path):
    few = run_small(tmp_path / "few.zarr", rank=7)
    assert few.side_widths == {}
    run_small(tmp_path / "without.zarr", rank=7, sides=None)
    stored = [method_runs.results(tmp_path / name) for name in ("few.zarr", "without.zarr")]
    assert stored[0] == stored[1]


def test_as_many_numbers_behind_sides_as_the_rank_need_no_further_basis(tmp_path):
    done = run_small(tmp_path / "run.zarr", rank=6)
    assert {"sides/0", "sides/1"} <= done.store.layouts.keys()
    assert not {"bases/0", "bases/1"} & done.store.layouts.keys()
    assert done.ranks == {"0": 6, "2": 6}
    close(done.scores[:], fitted_small(small_runs.train_loader(), rank=6), 2e-3)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_gradient_that_is_not_finite_is_named_by_its_sample(tmp_path, seed):
    model, train, test, *_ = problem(Rooted)
    position = int((train[0][:, 0, 0] == LARGE).nonzero())
    assert (position in np.random.default_rng(seed).permutation(N)[:SAMPLE]) == (seed == 3)
    influence = ExactInfluence(model, F.cross_entropy)
    with pytest.raises(ModelError, match=f"Position {position} of the training data"):
        run_influences(
            influence,
            [test],
            batches(*train),
            tmp_path / "run.zarr",
            basis_seed=seed,
            progress=False,
            **ASKED,
        )


# What is asked otherwise, and what is refused


def test_further_queries_need_only_the_bases(tmp_path, whole):
    test, place = problem()[2], tmp_path / "query.zarr"
    settings = {"tile": (2, None), "memory": "1MiB", "progress": False}
    ask = built(DataInfInfluence)
    query = run_influences(ask, [test], InfluenceRun(whole), place, **settings)
    assert np.array_equal(query.scores[:], InfluenceRun(whole).scores[:])
    assert query.side_widths == KEPT
    query.check()
    again = run_influences(ask, [test], query, tmp_path / "same.zarr", **ASKED, **settings)
    assert np.array_equal(again.scores[:], query.scores[:])


@pytest.mark.parametrize("sides", [0.4, None])
def test_a_query_cannot_ask_for_other_sides(tmp_path, whole, sides):
    test, place = problem()[2], tmp_path / "query.zarr"
    with pytest.raises(PlanError, match=rf"keeps its training rows with sides={SHARE}, otherwise"):
        run_influences(
            built(DataInfInfluence), [test], InfluenceRun(whole), place, **ASKED | {"sides": sides}
        )
    assert not place.exists()


@pytest.mark.parametrize("sides", [0.4, None])
def test_other_sides_are_another_run(whole, sides):
    with pytest.raises(StoreExistsError, match=r"compression: \d differ \('sides'"):
        run(whole, DataInfInfluence, sides=sides)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sides": 1.0}, r"^sides must be a number between 0 and 1, got 1\.0"),
        ({"rank": "auto"}, 'rank="auto" looks at the energy of whole rows'),
        ({"rows": "zarr", "rank": None, "basis_sample": None}, "sides are those of compressed ro"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, settings, match):
    with pytest.raises(PlanError, match=match):
        run(tmp_path / "run.zarr", **settings)
    assert not (tmp_path / "run.zarr").exists()


def test_sides_of_the_influence_do_not_count(tmp_path):
    """As its rank does not."""
    test, train = small_runs.query_loader(), small_runs.train_loader()
    asked = {"rows": "compressed", "rank": 4, "progress": False}
    done = run_influences(built_small(**SMALL), test, train, tmp_path / "run.zarr", **asked)
    assert done.side_widths == {}


# The plan


def test_moments_of_sides_count_towards_memory():
    usual = {"n": 10**4, "m": 10, "m_samples": 10, "itemsize": 4, "longest": 8, "method": EXACT}
    layers = {"wide": (4096, 4096, False)}
    compression = Compression(rank=64, sides=0.25).of_layers(layers)
    widths = {"wide": 4096**2}
    settings = {"whole": [4096**2], "basis_sample": 192, "small": [1024**2], **usual}
    asked = RunSize(
        widths=[64],
        bases=list(compression.shapes(widths, 10**4).values()),
        side_moments=moment_bytes(layers.values()),
        sides=2 * 4096 * 1024,
        **settings,
    )
    assert asked.bases == [(64, 1024**2)]
    assert asked.side_moments == 5 * 8 * 2 * 4096**2
    assert asked.basis_bytes == 4 * 2 * (64 * 1024**2 + 2 * 4096 * 1024)
    assert asked.learning > 192 * 1024**2 * (2 * 4 + 3 * 8)
    needed = 3 * asked.gradient + asked.basis_bytes + asked.side_moments
    with pytest.raises(PlanError, match="learning the bases takes"):
        make_plan(asked, memory=needed, rows="zarr")
    plan = make_plan(asked, memory=4 * max(needed, asked.learning), rows="zarr")
    assert plan.step > 1
    other = {**settings, "small": (), "basis_sample": 192}
    whole = RunSize(widths=[64], bases=[(64, 4096**2)], **other)
    assert whole.learning > 10 * asked.learning
