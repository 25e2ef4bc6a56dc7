"""Runs with the exact inverse and with gradient products, and how far a run is from exact."""

import re
import shutil
from functools import cache
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zarr.storage import MemoryStore

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    ModelError,
    PlanError,
    SourceError,
    StoreError,
    StoreExistsError,
    approximation_error,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.inverse.sherman_morrison import DataInf
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import APPROXIMATION
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.choices import exact_sample_of
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.sizing import sample_bytes, sampled_queries
from pydvl_datainf.tables import info_tables

N, M = 23, 30  # between the widths of the blocks, so that one is solved in either space
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}  # of 20 and 24 parameters
HALF = 2**-11  # the largest relative error of a number in half precision


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


def loader(data, size):
    return DataLoader(TensorDataset(*data), size)


def datainf(regularization="auto"):
    return DataInfInfluence(network(), F.cross_entropy, regularization)


def exact(regularization="auto"):
    return ExactInfluence(network(), F.cross_entropy, regularization)


def plain():
    return HessianFreeInfluence(network(), F.cross_entropy)


def scaled(regularization="auto"):
    return HessianFreeInfluence(network(), F.cross_entropy, regularization, scaled=True)


# Bytes in which the queries take several groups.
TIGHT = {datainf: 25_000, exact: 70_000, plain: 25_000, scaled: 40_000}
MATRICES = {
    datainf: dense.datainf_matrix,
    exact: dense.exact_matrix,
    plain: lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype),
    scaled: dense.scaled_identity,
}
KEPT = [
    pytest.param(build, rows, id=f"{build.__name__} {rows}")
    for build, places in (
        (exact, ["memory", "zarr"]),
        (plain, ["recompute"]),
        (scaled, ["memory", "zarr"]),
    )
    for rows in places
]


@pytest.fixture
def store():
    return MemoryStore()


def run(store, influence, test=None, train=None, **settings):
    settings = {"progress": False, "tile": (16, 12), **settings}
    test, train = test or loader(samples(M, 2), 7), train or loader(samples(N, 1), 5)
    return run_influences(influence, test, train, store, **settings)


@cache
def rows_of(length, seed):
    model, data = network(), samples(length, seed)
    return {b: dense.gradients(model, F.cross_entropy, data, names) for b, names in BLOCKS.items()}


def stored_rows(store):
    """What is in the store, put together in float64."""
    group = zarr.open_group(store, mode="r")
    pieces = [group[f"rows/{p}"][...] for p in range(len(InfluenceRun(store).plan.pieces))]
    halves = torch.from_numpy(np.hstack(pieces)).double().split([20, 24], 1)
    scales = torch.from_numpy(group["row_scales"][...]).double().unbind(1)
    return {b: h * s[:, None] for b, h, s in zip(BLOCKS, halves, scales, strict=True)}


def truth(build, G=None, seed=2, length=M, damping=None):
    """Scores (m, blocks, n) and self-influences (n,), by the oracle."""
    V, computed = rows_of(length, seed), rows_of(N, 1)
    G = computed if G is None else G
    λ = damping or {b: dense.automatic_damping(g) for b, g in computed.items()}
    inverse = {b: MATRICES[build](g, λ[b]) for b, g in G.items()}
    scores = torch.stack([V[b] @ inverse[b] @ G[b].T for b in BLOCKS], 1)
    return scores.numpy(), sum((G[b] @ inverse[b] * G[b]).sum(1) for b in BLOCKS).numpy()


def true_scores(build, **settings):
    return truth(build, **settings)[0].sum(1)


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)


def chunks(store):
    """The content of all results."""
    found = (p for p in store.rglob("c/**/*") if p.is_file() or p.name == "c")
    return {str(p.relative_to(store)): p.read_bytes() for p in found if p.is_file()}


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


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


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


def test_joblib_agrees(tmp_path):
    done = run(tmp_path / "run.zarr", exact(), n_jobs=2, self_influence=True, exact_sample=9)
    assert done.plan.rows == "zarr"
    scores, selves = truth(exact, stored_rows(tmp_path / "run.zarr"))
    close(done.scores[...], scores.sum(1))
    close(done.self_influence(), selves)


# Stopped


def stopping(monkeypatch, name, call):
    """Ctrl-C in a certain call of a task."""
    function, seen = getattr(tasks, name), []

    def stop(*arguments):
        seen.append(arguments)
        if len(seen) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(tasks, name, stop)


SMALL = {"memory": TIGHT[exact], "tile": (8, 12), "self_influence": True}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Stores of exact runs that nothing stopped, by how rows are kept; in two groups."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for rows in ("memory", "zarr"):
        run(folder / rows, exact(), rows=rows, **SMALL)
    return folder


STOPS = [
    ("memory", "write_piece", 2),
    ("memory", "write_self_sum", 1),
    ("zarr", "write_rows", 1),
    ("zarr", "write_piece", 2),
    ("zarr", "write_self_sum", 1),
    ("zarr", "write_mean", 2),
]


@pytest.mark.parametrize(("rows", "name", "call"), STOPS)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path, undisturbed, monkeypatch, rows, name, call
):
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        stopping(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(store, exact(), rows=rows, **SMALL)
    done = InfluenceRun(store).attrs["gradients"]
    assert not InfluenceRun(store).is_complete
    run(store, exact(), rows=rows, **SMALL)
    assert chunks(store) == chunks(undisturbed / rows)
    again = InfluenceRun(store).attrs["gradients"] - done
    total = InfluenceRun(undisturbed / rows).attrs["gradients"]
    assert again <= total - done + (N if rows == "memory" else 0)


def test_vectors_of_which_a_part_is_missing_are_computed_again(tmp_path, undisturbed, monkeypatch):
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        stopping(patch, "write_piece", 2)
        with pytest.raises(KeyboardInterrupt):
            run(store, exact(), rows="zarr", **SMALL)
    (store / "work/vectors/0/c/0/3/0").unlink()
    run(store, exact(), rows="zarr", **SMALL)
    assert chunks(store) == chunks(undisturbed / "zarr")


@pytest.mark.parametrize("key", ["scores/c/1/0", "rows/0/c/1/0", "self_influence/c/1"])
def test_damage_is_repaired(tmp_path, undisturbed, key):
    store = shutil.copytree(undisturbed / "zarr", tmp_path / "run.zarr")
    (store / key).unlink()
    with pytest.raises(StoreError, match=key):
        InfluenceRun(store).check()
    run(store, exact(), rows="zarr", **SMALL)
    assert chunks(store) == chunks(undisturbed / "zarr")


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
    before = chunks(tmp_path / "run.zarr")
    for other in MATRICES.keys() - {first}:
        with pytest.raises(StoreExistsError, match=r"method: .* in the store, .* now"):
            run(tmp_path / "run.zarr", other())
    assert chunks(tmp_path / "run.zarr") == before


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


@pytest.mark.parametrize("asked", [-1, 2.5, True, "all", None])
def test_the_sample_for_the_error_is_a_number(store, asked):
    with pytest.raises(PlanError, match="exact_sample must be a number of samples, 0 or"):
        run(store, datainf(), exact_sample=asked)


# How far a run is from exact

SAMPLE = 9


def chosen(plan, asked):
    """Which training samples are compared, and which test samples."""
    train = [plan.train[j].start + i for j, k in plan.sampled(asked) for i in range(k)]
    return train, [i for part in sampled_queries(M) for i in range(part.start, part.stop)]


def compared(build, done, G, asked=SAMPLE):
    """The comparison of dense rows, which are those of the store or computed."""
    train, test = chosen(done.plan, asked)
    rows = {b: g[train] for b, g in G.items()}
    vectors = {b: v[test] for b, v in rows_of(M, 2).items()}
    damping, scores, found = done.damping, {}, {}
    for what, matrix in (("A", MATRICES[build]), ("E", dense.exact_matrix)):
        parts = {b: vectors[b] @ matrix(rows[b], damping[b]) for b in BLOCKS}
        found[what] = parts
        scores[what] = sum(parts[b] @ rows[b].T for b in BLOCKS)
    A, E = found["A"], found["E"]
    return {
        "errors": [float((A[b] - E[b]).norm() / E[b].norm()) for b in BLOCKS],
        "cosines": [float((A[b] * E[b]).sum() / A[b].norm() / E[b].norm()) for b in BLOCKS],
        "score_error": float((scores["A"] - scores["E"]).norm() / scores["E"].norm()),
        "n": len(train),
        "m": len(test),
    }


def assert_same_error(found, expected, rel=1e-8):
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize(
    ("build", "rows"),
    [(datainf, "memory"), (datainf, "zarr"), (datainf, "recompute"), (scaled, "memory")],
)
def test_the_error_of_a_run(store, build, rows):
    done = run(store, build(), rows=rows, exact_sample=SAMPLE)
    of_rows = {"zarr": stored_rows}.get(rows, lambda _: rows_of(N, 1))
    found = done.approximation_error
    assert found.errors.min() > 0.01  # the premise: there is an error
    assert_same_error(found, compared(build, done, of_rows(store)))
    assert found.blocks == ("0", "2")
    assert found.widths.tolist() == [20, 24]
    assert found.damping.tolist() == list(done.damping.values())
    assert InfluenceRun(store).approximation_error.score_error == found.score_error
    done.check()
    with pytest.raises(AssertionError):  # the negative control: other samples, other numbers
        assert_same_error(found, compared(build, done, of_rows(store), SAMPLE + 4), 1e-4)


@pytest.mark.parametrize(("build", "rows"), [(datainf, "memory"), (scaled, "recompute")])
def test_it_is_what_the_function_says_of_the_same_samples(store, build, rows):
    done = run(store, build(), rows=rows, exact_sample=SAMPLE)
    train, test = chosen(done.plan, SAMPLE)
    assert len(set(train)) == len(train) >= SAMPLE
    assert len(set(test)) == len(test) == min(M, 32)
    influence = build(done.damping).fit([tuple(t[train] for t in samples(N, 1))])
    expected = approximation_error(influence, *(t[test] for t in samples(M, 2)))
    found = done.approximation_error
    for name in ("errors", "cosines", "score_error", "rank_correlation"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-8), name
    assert (found.n, found.m) == (expected.n, expected.m)


@pytest.mark.parametrize(("rows", "of_train"), [("memory", 1), ("recompute", 1), ("zarr", 0)])
def test_the_error_is_added_to_a_complete_run_without_computing_scores_again(
    tmp_path, rows, of_train
):
    store = tmp_path / "run.zarr"
    before = run(store, datainf(), rows=rows)
    assert before.approximation_error is None
    scores = chunks(store)
    done = run(store, datainf(), rows=rows, exact_sample=SAMPLE)
    train, test = chosen(done.plan, SAMPLE)
    more = done.attrs["gradients"] - before.attrs["gradients"]
    # Rows come in pieces of a batch, of which the first samples are taken.
    assert len(test) + of_train * len(train) <= more <= len(test) + of_train * N
    assert scores.items() <= chunks(store).items()
    fresh = run(tmp_path / "fresh.zarr", datainf(), rows=rows, exact_sample=SAMPLE)
    assert done.approximation_error.errors.tolist() == fresh.approximation_error.errors.tolist()
    assert done.is_complete
    assert run(store, datainf(), rows=rows, exact_sample=SAMPLE).attrs == done.attrs
    assert run(store, datainf(), rows=rows).approximation_error is not None


def test_another_number_of_samples_replaces_the_error(store):
    run(store, datainf(), exact_sample=SAMPLE)
    done = run(store, datainf(), exact_sample=SAMPLE + 9)
    assert done.approximation_error.n > SAMPLE + 8
    assert_same_error(done.approximation_error, compared(datainf, done, rows_of(N, 1), SAMPLE + 9))


def test_an_error_that_is_replaced_when_the_run_stops_is_replaced_later(store, monkeypatch):
    """Never the numbers of one sample beside the size of another."""
    write = Store.write

    def stop(self, name, where, values):
        if name == APPROXIMATION:
            raise KeyboardInterrupt
        write(self, name, where, values)

    run(store, datainf(), exact_sample=SAMPLE)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(store, datainf(), exact_sample=SAMPLE + 9)
    done = run(store, datainf(), exact_sample=SAMPLE + 9)
    assert_same_error(done.approximation_error, compared(datainf, done, rows_of(N, 1), SAMPLE + 9))


def test_what_a_run_holds_tells_the_comparison(tmp_path):
    console = Console(record=True, width=120, file=StringIO())
    done = run(tmp_path / "run.zarr", datainf(), exact_sample=SAMPLE)
    for table in info_tables(done):
        console.print(table)
    text = " ".join(console.export_text().split())
    found = done.approximation_error
    assert f"over {found.n} training, {found.m} test samples" in text
    assert f"Rank correlation of influences {found.rank_correlation:.2f}" in text
    assert f"a common factor included {found.score_error:.2g}" in text


def test_gradient_products_show_no_damping(tmp_path):
    done = run(tmp_path / "run.zarr", plain())
    first = next(info_tables(done))
    assert "none" in [str(cell) for cell in first.columns[1].cells]


def test_a_run_that_is_open_sees_the_error_of_a_later_call(store):
    done = run(store, datainf(), exact_sample=SAMPLE)
    assert done.approximation_error.n < SAMPLE + 8
    run(store, datainf(), exact_sample=SAMPLE + 9)
    assert_same_error(done.approximation_error, compared(datainf, done, rows_of(N, 1), SAMPLE + 9))


@pytest.mark.parametrize("wish", [{"exact_sample": SAMPLE}, {"self_influence": True}])
def test_what_a_stopped_call_had_begun_does_not_spoil_one_that_does_not_ask_for_it(
    store, monkeypatch, wish
):
    write = Store.write

    def stop(self, name, where, values):
        if name in (APPROXIMATION, "self_influence"):
            raise KeyboardInterrupt
        write(self, name, where, values)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(store, datainf(), rows="zarr", **wish)
    done = run(store, datainf(), rows="zarr")
    done.check()
    assert done.approximation_error is None
    assert not done.has_self_influence
    close(compute_self_influence(done, progress=False), truth(datainf, stored_rows(store))[1])


def test_a_sample_that_does_not_fit_in_memory_is_refused_before_the_work(tmp_path):
    with pytest.raises(PlanError, match="exact_sample=0"):
        run(tmp_path / "run.zarr", datainf(), memory=35_000, rows="zarr", exact_sample=SAMPLE)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(("memory", "compared"), [("1MiB", N), (35_000, None)])
def test_by_itself_it_compares_what_fits(tmp_path, memory, compared):
    done = run(tmp_path / "run.zarr", datainf(), memory=memory, rows="zarr", exact_sample="auto")
    found = done.approximation_error
    assert (None if found is None else found.n) == compared


@pytest.mark.parametrize("n", [1000, 100])
def test_the_sample_becomes_smaller_with_the_memory(n):
    """Premise: more samples take more; each number is the largest of its kind that fits."""
    model = SimpleNamespace(
        method=METHODS["DataInf"], widths={"a": 1000, "b": 500}, dtype="float32", layers={}
    )
    sizes = {s: sample_bytes((1000, 500), 4, min(s, n), 40) for s in (256, 128, 64)}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for needed in sizes.values():
        wishes = RunOptions(memory=needed, exact_sample="auto")
        assert sizes[exact_sample_of(wishes, model, n, 40)] == needed
    assert (
        exact_sample_of(
            RunOptions(memory=min(sizes.values()) - 1, exact_sample="auto"), model, n, 40
        )
        == 0
    )


@pytest.mark.parametrize("build", [exact, plain])
def test_nothing_is_compared_that_approximates_nothing(store, build):
    done = run(store, build(), exact_sample=SAMPLE)
    assert done.approximation_error is None
    assert "approximation" not in zarr.open_group(store, mode="r")


def test_one_training_sample_has_no_error(store):
    done = run(store, datainf(), train=loader(samples(1, 1), 4), exact_sample=256)
    assert done.approximation_error.score_error < 1e-9
    assert done.approximation_error.rank_correlation is None
    assert InfluenceRun(store).approximation_error.n == 1


def test_groups_of_queries_are_compared_by_their_samples(store):
    labels = (np.arange(M) % 3).tolist()
    done = run(store, datainf(), query_groups=labels, exact_sample=SAMPLE)
    assert_same_error(done.approximation_error, compared(datainf, done, rows_of(N, 1)))


def test_a_cluster_compares_too(tmp_path, client):
    done = run(
        tmp_path / "run.zarr", datainf(), client=client, rows="recompute", exact_sample=SAMPLE
    )
    assert_same_error(done.approximation_error, compared(datainf, done, rows_of(N, 1)))


# Inverses of the caller's own


class DoubledInverse(DataInf):
    name = "doubled"


class Doubled(DataInfInfluence):
    inverse = DoubledInverse()


def test_a_run_refuses_an_inverse_that_it_does_not_know(tmp_path):
    with pytest.raises(ModelError, match="knows the inverses DataInf, exact"):
        run(tmp_path / "run.zarr", Doubled(network(), F.cross_entropy))
