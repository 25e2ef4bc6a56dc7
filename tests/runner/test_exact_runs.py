"""Runs with the exact inverse and with gradient products, against the dense oracle."""

import re

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F

from exact_runs import TIGHT, M, N, rows_of, run, stored_rows, true_scores, truth
from method_runs import MATRICES, datainf, exact, loader, plain, results, scaled
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    ModelError,
    PlanError,
    SourceError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.inverse.sherman_morrison import DataInf
from pydvl_datainf.results.reader import InfluenceRun
from small_runs import close, network, samples

HALF = 2**-11  # the largest relative error of a number in half precision
KEPT = [
    pytest.param(build, rows, id=f"{build.__name__} {rows}")
    for build, places in (
        (exact, ["memory", "zarr"]),
        (plain, ["recompute"]),
        (scaled, ["memory", "zarr"]),
    )
    for rows in places
]


# Agreement with the formula

CUTS = {
    "uneven": lambda build: {"tile": (11, 7)},
    "groups": lambda build: {"tile": (8, 12), "memory": TIGHT[build]},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("build", "rows"), KEPT)
def test_scores_are_those_of_the_formula(store, build, rows, cut):
    """With stored rows, of what is stored."""
    done = run(store, build(), rows=rows, self_influence=True, **CUTS[cut](build))
    assert done.plan.rows == rows
    of_rows = {"zarr": stored_rows}.get(rows, lambda _: None)
    scores, selves = truth(build, of_rows(store))
    close(done.scores[...], scores.sum(1))
    close(done.mean_influence(), scores.sum(1).mean(0))
    close(done.self_influence(), selves)
    assert "work" not in zarr.open_group(store, mode="r")
    done.check()


@pytest.mark.parametrize(("build", "rows"), KEPT)
def test_premise_little_memory_means_several_groups_of_queries(store, build, rows):
    done = run(store, build(), rows=rows, **CUTS["groups"](build))
    assert len(done.plan.groups) > 1


def test_other_methods_and_another_n_are_told_apart(tmp_path):
    """Negative control: the scores of one method are far from those of the others."""
    scores = {b: run(tmp_path / b.__name__, b()).scores[...] for b in MATRICES}
    for build, found in scores.items():
        close(found, true_scores(build))
        for other in MATRICES.keys() - {build}:
            with pytest.raises(AssertionError):
                close(found, true_scores(other), 0.03)
    twice = {b: torch.cat([g, g[:1]]) for b, g in rows_of(N, 1).items()}
    with pytest.raises(AssertionError):
        close(scores[exact], true_scores(exact, G=twice)[:, :N], 1e-3)


def test_what_half_precision_does_to_exact_scores(store):
    """A bound that follows from the rounding of rows, E with ‖e_i‖ ≤ u ‖g_i‖ for u = 2⁻¹¹.

    With P = (H + λI)⁻¹ before and P' after rounding, P'G'ᵀ − PGᵀ = P'Eᵀ − P'(H' − H)PGᵀ, where
    H' − H = (G'ᵀE + EᵀG)/n. From ‖P'‖ ≤ 1/λ, ‖GPGᵀ‖ ≤ n and ‖PGᵀ‖, ‖P'G'ᵀ‖ ≤ √n/(2√λ) the scores
    of a query move by at most (1 + 1 + 1/4) ‖v‖ u ‖G‖_F/λ in norm, summed over blocks.
    """
    done = run(store, exact(), rows="zarr")
    V, G, found = rows_of(M, 2), rows_of(N, 1), done.scores[...]
    stored = stored_rows(store)
    for b, g in G.items():
        error = (stored[b] - g).norm(dim=1)
        assert (error <= 1.01 * HALF * g.norm(dim=1)).all()
        assert (error > 0).all()
    bound = sum(2.25 * 1.01 * HALF * V[b].norm(dim=1) * G[b].norm() / done.damping[b] for b in V)
    moved = np.linalg.norm(found - true_scores(exact), axis=1)
    assert (moved > 0).all()
    assert (moved <= bound.numpy()).all()
    # The bound tells something: the scores of DataInf are not within it.
    other = np.linalg.norm(true_scores(datainf) - true_scores(exact), axis=1)
    assert (other > bound.numpy()).all()


def test_half_precision_moves_exact_scores_by_a_thousandth_of_their_root_mean_square(store):
    done, expected = run(store, exact(), rows="zarr"), true_scores(exact)
    rms = np.sqrt((expected**2).mean(1, keepdims=True))
    error = np.abs(done.scores[...] - expected) / rms
    assert 0 < error.max() < 1e-3


def test_few_samples(store):
    train = loader(samples(4, 1), 3)
    expected = exact().fit(train).training_influences(*samples(M, 2)).numpy()
    close(run(store, exact(), train=train).scores[...], expected)


def test_exact_of_one_sample_is_datainf(tmp_path):
    train = loader(samples(1, 1), 4)
    found = [run(tmp_path / b.__name__, b(), train=train).scores[...] for b in (exact, datainf)]
    close(*found)


@pytest.mark.parametrize("build", [exact, scaled])
def test_scores_by_block(store, build):
    done = run(store, build(), by_block=True)
    assert done.scores.shape == (M, 2, N)
    close(done.scores[...], truth(build)[0])


@pytest.mark.parametrize("memory", ["1MiB", TIGHT[exact]])
def test_the_top_is_that_of_all_scores(store, memory):
    done = run(store, exact(), top_k=3, memory=memory, rows="memory", tile=(8, 12))
    expected = true_scores(exact)
    for most, sign in (("helpful", -1), ("harmful", 1)):
        order = np.argsort(sign * expected, axis=1)[:, :3]
        ids, scores = done.top(3, most=most)
        np.testing.assert_array_equal(ids, order)
        close(scores, np.take_along_axis(expected, order, axis=1))
    close(done.mean_influence(), expected.mean(0))


def test_groups_have_the_mean_influence_of_their_samples(store):
    labels = np.arange(M) % 3
    done = run(store, exact(), query_groups=labels.tolist())
    expected = true_scores(exact)
    close(done.scores[...], np.stack([expected[labels == group].mean(0) for group in range(3)]))


def test_float32_models(store):
    narrow = [loader((x.float(), y), 5) for x, y in (samples(M, 2), samples(N, 1))]
    influence = ExactInfluence(network().float(), F.cross_entropy)
    done = run(store, influence, *narrow, self_influence=True)
    assert done.scores.dtype == np.float32
    close(done.scores[...], true_scores(exact), 1e-5)
    close(done.self_influence(), truth(exact)[1], 1e-5)


# λ, and how much is computed


@pytest.mark.parametrize("build", [exact, scaled])
def test_given_damping_and_that_of_a_fitted_model_are_used(tmp_path, build):
    given = {"0": 0.5, "2": 0.01}
    done = run(tmp_path / "given.zarr", build(given))
    assert done.damping == given
    close(done.scores[...], true_scores(build, damping=given))
    fitted = build().fit(loader(samples(N, 1), 5)).with_regularization(0.25)
    done = run(tmp_path / "fitted.zarr", fitted)
    close(done.scores[...], fitted.training_influences(*samples(M, 2)).numpy())


def test_plain_products_have_a_damping_of_one(store):
    done = run(store, plain())
    assert done.damping == {"0": 1.0, "2": 1.0}
    assert done.attrs["method"].startswith("Hessian-free: ")


def test_blocks_without_gradients_are_fine_without_damping(store):
    """Premise: inputs of zeros, so that the weight has no gradient; it has no bias."""
    train = loader((0 * samples(N, 1)[0], samples(N, 1)[1]), 5)
    model = nn.Linear(3, 4, bias=False).double()
    influence = HessianFreeInfluence(model, F.cross_entropy)
    assert (run(store, influence, train=train).scores[...] == 0).all()


PASSES = {
    (exact, "memory"): 1,
    (plain, "recompute"): 1,
    (scaled, "recompute"): 2,
}


@pytest.mark.parametrize(("build", "rows"), PASSES)
def test_number_of_gradients(store, build, rows):
    done = run(store, build(), rows=rows, memory=TIGHT[build], tile=(8, 12))
    again = {"recompute": len(done.plan.groups) - 1}.get(rows, 0)
    assert done.attrs["gradients"] == (PASSES[build, rows] + again) * N + M


def test_self_influences_later_do_not_compute_scores_again(tmp_path):
    for rows, more in (("memory", N), ("zarr", 0)):
        store = tmp_path / rows
        before = run(store, exact(), rows=rows)
        scores = (store / "scores/c/1/1").stat().st_mtime_ns
        done = run(store, exact(), rows=rows, self_influence=True)
        assert done.attrs["gradients"] == before.attrs["gradients"] + more
        assert (store / "scores/c/1/1").stat().st_mtime_ns == scores
        close(done.self_influence(), truth(exact)[1], 1e-2)


@pytest.mark.parametrize("build", [exact, scaled])
def test_self_influences_from_stored_rows_without_a_model(store, build):
    run(store, build(), rows="zarr")
    found = compute_self_influence(InfluenceRun(store), progress=False)
    close(found, truth(build, stored_rows(store))[1])


# Executors


@pytest.mark.parametrize(
    ("build", "rows"), [(exact, "zarr"), (plain, "zarr"), (plain, "recompute")]
)
def test_dask_agrees(tmp_path, client, build, rows):
    done = run(tmp_path / "run.zarr", build(), rows=rows, client=client, self_influence=True)
    of_rows = {"zarr": stored_rows}.get(rows, lambda _: None)
    scores, selves = truth(build, of_rows(tmp_path / "run.zarr"))
    close(done.scores[...], scores.sum(1))
    close(done.self_influence(), selves)
    assert not client.futures


def test_rows_are_on_disk_where_others_must_see_them_all(tmp_path, client):
    assert run(tmp_path / "dask", exact, client=client).plan.rows == "zarr"
    assert run(tmp_path / "here", exact()).plan.rows == "memory"
    assert run(tmp_path / "sum", plain, client=client).plan.rows == "zarr"


@pytest.mark.usefixtures("fork_server")
def test_joblib_agrees(tmp_path):
    done = run(tmp_path / "run.zarr", exact(), n_jobs=2, self_influence=True, exact_sample=9)
    assert done.plan.rows == "zarr"
    scores, selves = truth(exact, stored_rows(tmp_path / "run.zarr"))
    close(done.scores[...], scores.sum(1))
    close(done.self_influence(), selves)


# Further queries, and other methods in the same place


@pytest.mark.parametrize("build", [exact, plain])
def test_further_queries_on_stored_rows(tmp_path, build):
    done = run(tmp_path / "run.zarr", build(), rows="zarr")
    asked = run_influences(
        build(), loader(samples(5, 9), 2), done, tmp_path / "more.zarr", progress=False
    )
    G = stored_rows(tmp_path / "run.zarr")
    close(asked.scores[...], true_scores(build, G=G, seed=9, length=5))
    assert asked.damping == done.damping
    assert asked.attrs["gradients"] == 5
    close(compute_self_influence(asked, progress=False), truth(build, G)[1])


def test_further_queries_by_another_method_are_refused(tmp_path):
    done = run(tmp_path / "run.zarr", exact(), rows="zarr")
    with pytest.raises(ModelError, match="method: 'exact' in the store, 'DataInf' now"):
        run_influences(
            datainf(), loader(samples(5, 9), 2), done, tmp_path / "more.zarr", progress=False
        )


@pytest.mark.parametrize("first", [datainf, exact])
def test_a_run_is_not_gone_on_with_by_another_method(tmp_path, first):
    run(tmp_path / "run.zarr", first())
    before = results(tmp_path / "run.zarr")
    for other in MATRICES.keys() - {first}:
        with pytest.raises(StoreExistsError, match=r"method: .* in the store, .* now"):
            run(tmp_path / "run.zarr", other())
    assert results(tmp_path / "run.zarr") == before


def test_another_method_replaces_a_run_if_told(store):
    run(store, datainf())
    done = run(store, exact(), overwrite=True)
    close(done.scores[...], true_scores(exact))
    assert done.attrs["method"].startswith("exact: ")


# Refusals


def test_rows_that_are_computed_again_piece_by_piece_do_not_serve(tmp_path):
    with pytest.raises(SourceError, match="exact inverse needs the gradients of all samples"):
        run(tmp_path / "run.zarr", exact(), rows="recompute")
    assert not (tmp_path / "run.zarr").exists()


def test_a_block_that_does_not_fit_is_refused_with_the_memory_that_it_takes(store):
    with pytest.raises(
        PlanError, match=r"the exact inverse takes .* in the widest block"
    ) as caught:
        run(store, exact(), memory=10_000, rows="zarr", tile=(8, 6))
    needed = int(re.search("memory=([0-9,]+), for", str(caught.value))[1].replace(",", ""))
    assert needed > 10_000
    done = run(store, exact(), memory=needed, rows="zarr", tile=(8, 6))
    close(done.scores[...], true_scores(exact, G=stored_rows(store)))


# Inverses of the caller's own


class DoubledInverse(DataInf):
    name = "doubled"


class Doubled(DataInfInfluence):
    inverse = DoubledInverse()


def test_a_run_refuses_an_inverse_that_it_does_not_know(tmp_path):
    with pytest.raises(ModelError, match="knows the inverses DataInf, exact"):
        run(tmp_path / "run.zarr", Doubled(network(), F.cross_entropy))
