"""Runs whose influences are divided by the norms of the training gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import dense
from commands import done as shown
from fitted import close
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    PlanError,
    StoreError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
    sum_runs,
)
from pydvl_datainf.jobfile.estimate import gradients
from pydvl_datainf.results.record import faults, sealed_attributes
from pydvl_datainf.results.selection import select_samples
from pydvl_datainf.runner.batched_data import as_batched
from pydvl_datainf.runner.worker_inputs import Inputs

N, M, ZERO = 11, 5, 3
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double().eval()


def hinge(z, y):
    """Exactly zero where y is far below."""
    return (y - z[:, 0]).relu().square().mean()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, 2 + torch.rand(length, generator=generator, dtype=torch.float64)


TRAIN, TEST = samples(N, 1), samples(M, 2)
TRAIN[1][ZERO] = -100.0
KINDS = {
    "datainf": (DataInfInfluence, dense.datainf_matrix),
    "exact": (ExactInfluence, dense.exact_matrix),
    "plain": (HessianFreeInfluence, lambda rows, λ: torch.eye(rows.shape[1]).double()),
}


def rows_of(data):
    return {b: dense.gradients(network(), hinge, data, names) for b, names in BLOCKS.items()}


def expected(matrix, damping=None):
    """By block, (M, blocks, N): v_tᵀ inverse g_k / ‖g_k‖, the norm over both blocks."""
    G, V = rows_of(TRAIN), rows_of(TEST)
    λ = {b: damping or dense.automatic_damping(g) for b, g in G.items()}
    norms = torch.cat(list(G.values()), 1).norm(dim=1)
    assert norms[ZERO] == 0
    scores = torch.stack([V[b] @ matrix(g, λ[b]) @ g.T for b, g in G.items()], 1)
    return torch.where(norms > 0, scores / norms, 0.0)


def described(kind, regularization):
    influence = KINDS[kind][0](network(), hinge, regularization)
    return Inputs(influence, as_batched([TEST], None, "test"), None).describe()


def run(store, kind="datainf", train=None, **options):
    made = KINDS[kind][0](network(), hinge, options.pop("regularization", "auto"))
    data = train or [tuple(t[:6] for t in TRAIN), tuple(t[6:] for t in TRAIN)]
    options = {"progress": False, "tile": (3, 4), "normalize": "unit", **options}
    return run_influences(made, [TEST], data, store, **options)


@pytest.mark.parametrize(
    ("kind", "rows", "regularization"),
    [
        ("datainf", "memory", "auto"),
        ("datainf", "memory", 0.3),
        ("datainf", "recompute", "auto"),
        ("datainf", "recompute", 0.3),
        ("exact", "memory", "auto"),
        ("plain", "recompute", "auto"),
    ],
)
def test_scores_are_those_of_gradients_of_length_one(tmp_path, kind, rows, regularization):
    found = run(tmp_path / "run", kind, rows=rows, regularization=regularization)
    given = None if regularization == "auto" else regularization
    total = expected(KINDS[kind][1], given).sum(1)
    close(found.scores[:], total)
    assert (found.scores[:, ZERO] == 0).all()
    close(found.mean_influence(), total.mean(0))
    found.check()
    passes = gradients(found.plan, described(kind, regularization), normalizes=True)
    assert found.attrs["gradients"] == passes[0] * N + passes[1] * M


def test_scores_that_are_not_divided_are_others(tmp_path):
    """Negative control."""
    plain = run(tmp_path / "run", rows="memory", normalize=None)
    with pytest.raises(AssertionError):
        close(plain.scores[:], expected(dense.datainf_matrix).sum(1), 1e-2)


def test_blocks_the_best_and_pieces(tmp_path):
    scores = expected(dense.datainf_matrix)
    close(run(tmp_path / "blocks", rows="memory", by_block=True).scores[:], scores)
    best = run(tmp_path / "best", rows="memory", top_k=4)
    order = np.argsort(-scores.sum(1).numpy(), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(best.store.read("top")[:, 0], order)
    ids, values = best.top(4)
    np.testing.assert_array_equal(ids, order)
    close(values, torch.from_numpy(np.take_along_axis(scores.sum(1).numpy(), order, 1)))


def test_stored_rows_and_queries_of_runs(tmp_path):
    total = expected(dense.datainf_matrix).sum(1)
    first = run(tmp_path / "run", rows="zarr", normalize=None, self_influence=True)
    query = run(tmp_path / "query", train=first)
    atol = 8 * 2**-11 * float(total.abs().max())
    np.testing.assert_allclose(query.scores[:], total, rtol=0, atol=atol)
    with pytest.raises(StoreError, match=r"divided by the norms.*without normalize"):
        query.self_influence()
    assert first.has_self_influence
    assert not query.has_self_influence
    again = run(tmp_path / "again", rows="zarr")
    close(again.scores[:], torch.as_tensor(query.scores[:]))


def test_one_sample(tmp_path):
    one = [samples(1, 7)]
    found = run(tmp_path / "run", "plain", train=one, tile=None)
    G, V = (torch.cat(list(rows_of(data).values()), 1) for data in (one[0], TEST))
    close(found.scores[:], V @ G.T / G.norm())


def test_what_has_no_meaning_beside_it_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"self-influences would be in another unit; leave out one"):
        run(tmp_path / "run", self_influence=True)
    with pytest.raises(PlanError, match='normalize must be "unit" or None, got True'):
        run(tmp_path / "run", normalize=True)
    assert not (tmp_path / "run").exists()
    found = run(tmp_path / "run", rows="zarr")
    for call in (
        found.self_influence,
        found.relative_influence,
        found.suspicion,
        lambda: compute_self_influence(found),
        lambda: select_samples(found, drop_suspicious=2),
    ):
        with pytest.raises(StoreError, match="divided by the norms"):
            call()
    dropped = select_samples(found, keep_helpful=4).dropped
    mean = expected(dense.datainf_matrix).sum(1).mean(0)
    assert set(dropped) == set(mean.argsort(descending=True)[4:].tolist())


def test_it_is_told_and_makes_another_run(tmp_path):
    found = run(tmp_path / "run")
    assert found.attrs["fingerprint"]["normalize"] == "unit"
    assert "Influences divided by the norm of each training gradient" in shown(
        "info", tmp_path / "run"
    )
    with pytest.raises(StoreExistsError, match="normalize: 'unit' in the store, None now"):
        run(tmp_path / "run", normalize=None)
    attributes = dict(found.attrs)
    said = {**attributes["fingerprint"], "normalize": "max"}
    (fault,) = faults(sealed_attributes({**attributes, "fingerprint": said}))
    assert fault == "fingerprint: normalize is 'max'"


def test_sums_are_of_runs_of_one_kind(tmp_path):
    parts = [run(tmp_path / kind, kind) for kind in ("datainf", "exact")]
    added = sum_runs(parts, tmp_path / "sum", [1.0, 2.0], progress=False)
    total = expected(dense.datainf_matrix) + 2 * expected(dense.exact_matrix)
    close(added.scores[:], total.sum(1))
    assert added.attrs["fingerprint"]["normalize"] == "unit"
    plain = run(tmp_path / "plain", normalize=None)
    with pytest.raises(PlanError, match="normalize: 'unit' and None"):
        sum_runs([parts[0], plain], tmp_path / "other", progress=False)
