"""Runs whose inverse is made of other rows than those that are scored."""

import shutil
from functools import cache, partial

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F

import dense
import fitted
from method_runs import results, stopped
from pydvl_datainf import (
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    ModelError,
    PlanError,
    SourceError,
    StoreError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
    sum_runs,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import faults, sealed_attributes

N, M, K = 23, 6, 4
BLOCKS = ["0", "1", "3"]
WIDTHS = [20, 10, 20]


def network(seed=0):
    """Two layers, and a norm between them."""
    torch.manual_seed(seed)
    layers = nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, K, bias=False)
    return nn.Sequential(*layers).double().eval()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, K, (length,), generator=generator)


def batches(data, size):
    return list(zip(*(t.split(size) for t in data), strict=True))


TRAIN, TEST = samples(N, 1), samples(M, 2)


def gauss_newton(kind, labels, regularization="auto", model=None, **settings):
    settings = {"curvature": "gauss-newton", "labels": labels, **settings}
    return kind(model or network(), F.cross_entropy, regularization, **settings)


def ekfac(regularization="auto", model=None, **settings):
    settings = {"labels": "drawn", **settings}
    return EkfacInfluence(model or network(), F.cross_entropy, regularization, **settings)


BUILDS = {
    "exact all": partial(gauss_newton, ExactInfluence, "all"),
    "exact drawn": partial(gauss_newton, ExactInfluence, "drawn"),
    "datainf all": partial(gauss_newton, DataInfInfluence, "all"),
    "datainf drawn": partial(gauss_newton, DataInfInfluence, "drawn"),
    "ekfac drawn": ekfac,
}
PLACES = [
    (name, rows)
    for name in BUILDS
    for rows in ("memory", "zarr", "recompute")
    if rows != "recompute" or name.startswith("datainf")
]


def run(store, influence, train=None, test=None, **options):
    options = {"tile": (4, 7), "progress": False, **options}
    train, test = train or batches(TRAIN, 5), test or batches(TEST, 4)
    return run_influences(influence, test, train, store, **options)


def in_float64(store, folder, scales):
    """Stored rows as they are computed with, by block."""
    group = zarr.open_group(store, mode="r")
    pieces = [group[f"{folder}/{p}"][...] for p in range(len(InfluenceRun(store).plan.pieces))]
    halves = torch.from_numpy(np.hstack(pieces)).double().split(WIDTHS, 1)
    factors = torch.from_numpy(group[scales][...]).double().unbind(1)
    return {b: h * s[:, None] for b, h, s in zip(BLOCKS, halves, factors, strict=True)}


def close(found, expected, rtol=1e-9):
    fitted.close(torch.as_tensor(found), torch.as_tensor(expected), rtol)


# Values


@pytest.mark.parametrize(
    ("name", "rows", "regularization"),
    [
        *((*place, "auto") for place in PLACES if place[1] != "zarr"),
        ("exact all", "memory", 0.01),
        ("datainf all", "recompute", 0.01),
    ],
)
def test_a_run_is_the_fitted_model(tmp_path, name, rows, regularization):
    build = BUILDS[name]
    influence = build(regularization).fit([TRAIN])
    done = run(tmp_path / "run", build(regularization), rows=rows, self_influence=True)
    assert done.plan.rows == rows
    close(done.scores[:], influence.training_influences(*TEST))
    close(done.self_influence(), influence.self_influences())
    assert done.damping == pytest.approx(influence.damping, rel=1e-9)
    done.check()


def test_other_labels_and_the_given_ones_are_told_apart(tmp_path):
    """Negative control."""
    right = BUILDS["exact all"]().fit([TRAIN]).training_influences(*TEST)
    others = [ExactInfluence(network(), F.cross_entropy), BUILDS["exact drawn"]()]
    for i, other in enumerate(others):
        with pytest.raises(AssertionError):
            close(run(tmp_path / str(i), other).scores[:], right, 1e-2)


MATRICES = {"exact": dense.exact_matrix, "datainf": dense.datainf_matrix}


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("exact all", "2GiB"),
        ("exact all", 120_000),
        ("exact drawn", "2GiB"),
        ("datainf all", 120_000),
    ],
)
def test_with_stored_rows_it_is_the_formula_of_what_is_stored(tmp_path, name, memory):
    """Both sets of rows are read back, and the formula taken of them in float64."""
    store, build = tmp_path / "run", BUILDS[name]
    done = run(store, build(), rows="zarr", self_influence=True, memory=memory)
    G = in_float64(store, "rows", "row_scales")
    C = in_float64(store, "curvature", "curvature_scales")
    each = {"all": K, "drawn": 1}[name.split()[1]]
    damping, scores, own = build().fit([TRAIN]).damping, 0, 0
    for block, g in G.items():
        assert C[block].shape == (each * N, g.shape[1])
        v = build().loss_gradients_by_block(*TEST)[block]
        inverse = MATRICES[name.split()[0]](C[block], damping[block])
        scores, own = scores + v @ inverse @ g.T, own + (g @ inverse * g).sum(1)
    close(done.scores[:], scores, 1e-8)
    close(done.self_influence(), own, 1e-8)
    assert done.damping == pytest.approx(damping, rel=1e-9)
    close(compute_self_influence(done)[:], own, 1e-8)


@pytest.mark.parametrize("name", ["exact all", "ekfac drawn"])
def test_stored_rows_cost_no_more_than_half_precision(tmp_path, name):
    exact = BUILDS[name]().fit([TRAIN]).training_influences(*TEST)
    done = run(tmp_path / "run", BUILDS[name](), rows="zarr")
    assert np.abs(done.scores[:] - exact.numpy()).max() <= 8 * 2**-11 * float(exact.abs().max())


def test_blocks_the_best_and_groups_of_queries(tmp_path):
    build = BUILDS["exact all"]
    whole = run(tmp_path / "whole", build(), rows="zarr")
    by_block = run(tmp_path / "blocks", build(), rows="zarr", by_block=True)
    close(by_block.scores[:].sum(1), whole.scores[:])
    best = run(tmp_path / "best", build(), rows="zarr", top_k=3)
    order = np.argsort(-whole.scores[:], axis=1)[:, :3]
    np.testing.assert_array_equal(best.store.read("top")[:, 0], order)
    groups = run(
        tmp_path / "groups", build(), rows="zarr", query_groups=["a", "b", "a", "b", "b", "a"]
    )
    close(groups.scores[0], whole.scores[:][[0, 2, 5]].mean(0))


FULL = {"self_influence": True, "tile": (4, 2)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing stopped, in this process; each is made once."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def whole(name, rows):
        run(folder / f"{name} {rows}", BUILDS[name](), rows=rows, **FULL)
        return results(folder / f"{name} {rows}")

    return whole


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("name", "rows"),
    [("exact all", "zarr"), ("datainf drawn", "recompute"), ("ekfac drawn", "zarr")],
)
def test_other_processes_give_the_same_bits(tmp_path, whole, name, rows):
    run(tmp_path / "two", BUILDS[name](), rows=rows, **FULL, n_jobs=2)
    assert results(tmp_path / "two") == whole(name, rows)


def test_one_sample_and_more_queries_than_samples(tmp_path):
    one = batches(samples(1, 4), 1)
    for name, build in BUILDS.items():
        right = build().fit(one).training_influences(*TEST)
        close(run(tmp_path / name, build(), one, rows="memory", tile=None).scores[:], right)


def test_sums_over_checkpoints(tmp_path):
    models = [network(seed) for seed in (0, 1)]
    runs = [
        run(tmp_path / str(i), BUILDS["exact all"](model=model), rows="memory")
        for i, model in enumerate(models)
    ]
    added = sum_runs(runs, tmp_path / "sum", [0.5, 2.0])
    close(added.scores[:], 0.5 * runs[0].scores[:] + 2 * runs[1].scores[:])
    assert "curvature" not in added.attrs["fingerprint"]
    added.check()


# The store


def test_what_is_in_the_store(tmp_path):
    done = run(tmp_path / "all", BUILDS["exact all"](), rows="zarr")
    drawn = run(tmp_path / "drawn", BUILDS["exact drawn"](label_seed=3), rows="memory")
    assert done.attrs["fingerprint"]["curvature"] == {"labels": "all", "rows": K}
    told = {"labels": "drawn", "rows": 1, "label_seed": 3}
    assert drawn.attrs["fingerprint"]["curvature"] == told
    group = zarr.open_group(tmp_path / "all", mode="r")
    assert group["curvature/0"].shape[0] == group["curvature_scales"].shape[0] == K * N
    C = in_float64(tmp_path / "all", "curvature", "curvature_scales")
    close(
        group["curvature_norms"][:], torch.stack([c.square().sum(1) for c in C.values()], 1), 1e-6
    )
    assert "curvature" not in zarr.open_group(tmp_path / "drawn", mode="r")
    assert done.attrs["gradients"] == (1 + K) * N + M
    with pytest.raises(StoreExistsError, match="label_seed"):
        run(tmp_path / "drawn", BUILDS["exact drawn"](label_seed=4), rows="memory")
    with pytest.raises(StoreExistsError, match="curvature"):
        run(tmp_path / "drawn", ExactInfluence(network(), F.cross_entropy), rows="memory")


WRONG = [
    "all",
    {"labels": "all"},
    {"labels": "all", "rows": 0},
    {"labels": "all", "rows": 4, "label_seed": 0},
    {"labels": "drawn", "rows": 2, "label_seed": 0},
    {"labels": "drawn", "rows": 1, "label_seed": "0"},
    {"labels": "some", "rows": 1, "label_seed": 0},
]


@pytest.fixture(scope="module")
def attributes(tmp_path_factory):
    return dict(run(tmp_path_factory.mktemp("told") / "run", BUILDS["exact drawn"]()).attrs)


@pytest.mark.parametrize("curvature", WRONG)
def test_an_entry_that_cannot_be_is_told(attributes, curvature):
    assert not list(faults(attributes))
    said = {**attributes["fingerprint"], "curvature": curvature}
    (fault,) = faults(sealed_attributes({**attributes, "fingerprint": said}))
    assert fault.startswith("fingerprint: curvature is")


STOPS = [
    ("exact all", "memory", "write_piece", 1),
    ("exact all", "zarr", "write_rows", 2),
    ("exact all", "zarr", "write_self_sum", 1),
    ("datainf all", "recompute", "write_rows", 3),
    ("datainf all", "recompute", "write_correction", 2),
    ("datainf all", "recompute", "write_scores", 2),
    ("ekfac drawn", "zarr", "write_moments", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "task", "call"), STOPS)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path, whole, monkeypatch, name, rows, task, call
):
    with stopped(monkeypatch, task, call):
        run(tmp_path / "run", BUILDS[name](), rows=rows, **FULL)
    assert not InfluenceRun(tmp_path / "run").is_complete
    run(tmp_path / "run", BUILDS[name](), rows=rows, **FULL)
    assert results(tmp_path / "run") == whole(name, rows)


@pytest.fixture(scope="module")
def rows_on_disk(tmp_path_factory):
    store = tmp_path_factory.mktemp("sound") / "run"
    run(store, BUILDS["exact all"](), rows="zarr")
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["curvature/0/c/1/0", "curvature_scales/c/1/0", "curvature_norms/c/2/0"]
)
def test_damage_is_told_and_repaired(tmp_path, rows_on_disk, key):
    store = shutil.copytree(rows_on_disk, tmp_path / "run")
    (store / key).write_bytes((store / key).read_bytes()[:-3])
    with pytest.raises(StoreError, match=key.split("/c/")[0]):
        InfluenceRun(store).check()
    run(store, BUILDS["exact all"](), rows="zarr")
    assert results(store) == results(rows_on_disk)


# Further queries


@pytest.mark.parametrize("name", ["exact all", "datainf drawn", "ekfac drawn"])
def test_a_further_query_uses_both_sets_of_rows(tmp_path, name):
    first = run(tmp_path / "first", BUILDS[name](), rows="zarr", test=batches(samples(3, 9), 2))
    query = run(tmp_path / "query", BUILDS[name](), train=first)
    again = run(tmp_path / "again", BUILDS[name](), rows="zarr")
    close(query.scores[:], again.scores[:])
    query.check()
    assert query.attrs["gradients"] == M


def test_a_query_of_another_curvature_is_refused(tmp_path):
    plain = run(tmp_path / "plain", ExactInfluence(network(), F.cross_entropy), rows="zarr")
    drawn = run(tmp_path / "drawn", BUILDS["exact drawn"](), rows="zarr")
    others = [
        (plain, BUILDS["exact drawn"]()),
        (drawn, ExactInfluence(network(), F.cross_entropy)),
        (drawn, BUILDS["exact drawn"](label_seed=1)),
        (drawn, BUILDS["exact all"]()),
    ]
    for first, influence in others:
        with pytest.raises(ModelError, match=r"made of other rows.*same curvature"):
            run(tmp_path / "query", influence, train=first)
    assert not (tmp_path / "query").exists()


# Plans and refusals


def test_the_plan_counts_the_further_rows(tmp_path):
    """What is too little memory for K + 1 rows a sample is enough for one."""
    with pytest.raises(PlanError, match="too few"):
        run(tmp_path / "run", BUILDS["exact all"](), rows="memory", memory=60_000)
    assert run(tmp_path / "run", BUILDS["exact drawn"](), rows="memory", memory=60_000).is_complete


def test_what_does_not_go_is_refused_early(tmp_path):
    with pytest.raises(PlanError, match="Leave out exact_sample"):
        run(tmp_path / "run", BUILDS["datainf all"](), exact_sample=5)
    for name in ("datainf all", "exact drawn"):
        with pytest.raises(PlanError, match="bases of compressed rows are learned from the grad"):
            run(tmp_path / "run", BUILDS[name](), rows="compressed", rank=2, basis_sample=5)
    with pytest.raises(SourceError, match="whole rows"):
        run(tmp_path / "run", BUILDS["ekfac drawn"](), rows="compressed")
    assert not (tmp_path / "run").exists()
    done = run(tmp_path / "run", BUILDS["datainf all"](), exact_sample="auto")
    assert "approximation" not in done.attrs["extras"]


def test_a_fitted_model_gives_its_damping(tmp_path):
    influence = BUILDS["exact all"]().fit([TRAIN])
    done = run(tmp_path / "run", influence, rows="memory")
    assert done.damping == influence.damping
    close(done.scores[:], influence.training_influences(*TEST))
