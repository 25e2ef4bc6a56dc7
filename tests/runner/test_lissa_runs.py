"""Runs with LiSSA and with a multiple of automatic damping."""

import pickle
import warnings

import numpy as np
import pytest
from torch.nn import functional as F
from zarr.storage import MemoryStore

import dense
from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    ExactInfluence,
    LissaInfluence,
    ModelError,
    SourceError,
    StoreError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.report import write_report
from pydvl_datainf.results.facts import run_facts
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import sealed_attributes
from pydvl_datainf.results.store import Store
from small_runs import network, samples

N, M, STEPS, NEVER = 23, 30, 12, 1e-300
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
NOT_CONVERGED = "ignore:LiSSA has not converged"


TEST, TRAIN = samples(M, 2), samples(N, 1)


def lissa(regularization="auto", iterations=STEPS, tolerance=NEVER, **settings):
    steps = {"iterations": iterations, "tolerance": tolerance}
    return LissaInfluence(network(), F.cross_entropy, regularization, **steps, **settings)


def run(store, influence, train=TRAIN, **settings):
    settings = {"progress": False, "tile": (16, 12), "rows": "memory", **settings}
    train = [train] if isinstance(train, tuple) else train
    return run_influences(influence, [TEST], train, store, **settings)


def gradients(data):
    return {
        b: dense.gradients(network(), F.cross_entropy, data, names) for b, names in BLOCKS.items()
    }


def dense_scores(steps=STEPS):
    V, G = gradients(TEST), gradients(TRAIN)
    damping = {b: dense.automatic_damping(g) for b, g in G.items()}
    matrix = lambda rows, λ: dense.lissa_matrix(rows, λ, steps)  # noqa: E731
    return dense.influences(V, G, G, damping, matrix).numpy()


def largest_residual(vectors):
    G = gradients(TRAIN)
    parts = (
        dense.lissa(G[b], v, dense.automatic_damping(G[b]), STEPS)[1] for b, v in vectors.items()
    )
    return max(float(part.max()) for part in parts)


@pytest.mark.filterwarnings(NOT_CONVERGED)
@pytest.mark.parametrize("settings", [{}, {"memory": 70_000}, {"by_block": True}], ids=str)
def test_scores_and_residual_are_those_of_the_dense_iteration(settings):
    made = run(MemoryStore(), lissa(), self_influence=True, **settings)
    scores = made.scores[...]
    scores = scores.sum(1) if settings.get("by_block") else scores
    np.testing.assert_allclose(scores, dense_scores(), rtol=1e-9, atol=1e-9)
    G = gradients(TRAIN)
    own = sum(
        (g @ dense.lissa_matrix(g, dense.automatic_damping(g), STEPS) * g).sum(1)
        for g in G.values()
    )
    np.testing.assert_allclose(made.self_influence(), own.numpy(), rtol=1e-9)
    largest = max(largest_residual(gradients(TEST)), largest_residual(G))
    assert made.residual == pytest.approx(largest, rel=1e-9)


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_premise_a_small_memory_makes_groups():
    assert len(run(MemoryStore(), lissa(), memory=70_000).plan.groups) > 1


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_stored_rows_answer_queries_and_self_influences(tmp_path):
    made = run(tmp_path / "run.zarr", lissa(), rows="zarr")
    assert made.plan.rows == "zarr"
    exact = dense_scores()
    np.testing.assert_allclose(made.scores[...], exact, rtol=0, atol=2e-2 * np.abs(exact).max())
    own = compute_self_influence(made)  # knows the settings from the store alone
    again = run(tmp_path / "other.zarr", lissa(), rows="zarr", self_influence=True)
    np.testing.assert_array_equal(own, again.self_influence())
    assert made.open(tmp_path / "run.zarr").residual == again.residual
    query = run(tmp_path / "query.zarr", lissa(), made, rows="auto")
    np.testing.assert_array_equal(query.scores[...], made.scores[...])
    assert query.residual == made.residual or query.residual <= again.residual
    for other in (lissa(iterations=STEPS + 1), DataInfInfluence(network(), F.cross_entropy)):
        with pytest.raises(ModelError, match=r"another model.*\n.*method"):
            run(tmp_path / "wrong.zarr", other, made, rows="auto")


@pytest.mark.filterwarnings(NOT_CONVERGED)
@pytest.mark.usefixtures("fork_server")
def test_worker_processes_give_the_same_bits(tmp_path):
    here = run(tmp_path / "here.zarr", lissa(), rows="zarr", memory=200_000)
    there = run(tmp_path / "there.zarr", lissa(), rows="zarr", memory=200_000, n_jobs=2)
    np.testing.assert_array_equal(here.scores[...], there.scores[...])
    assert here.residual == there.residual > 0


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_equal_settings_are_the_same_run_and_others_another(tmp_path):
    made = run(tmp_path / "run.zarr", lissa())
    gradients_before = made.attrs["gradients"]
    assert run(tmp_path / "run.zarr", lissa()).attrs["gradients"] == gradients_before
    for other in (lissa(iterations=13), lissa(tolerance=0.5)):
        with pytest.raises(StoreExistsError, match=r"method settings"):
            run(tmp_path / "run.zarr", other)
    with pytest.raises(StoreExistsError, match="method: "):
        run(tmp_path / "run.zarr", DataInfInfluence(network(), F.cross_entropy))
    told = made.attrs["fingerprint"]
    assert (told["method"], told["method settings"]) == (
        "LiSSA",
        {"iterations": STEPS, "tolerance": NEVER},
    )


@pytest.mark.parametrize("damage", [{"iterations": 0}, {"steps": 3}, {"iterations": "x"}, 3])
@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_settings_that_no_method_has_are_refused(tmp_path, damage):
    run(tmp_path / "run.zarr", lissa())
    store = Store(tmp_path / "run.zarr")
    attributes = dict(store.attributes)
    attributes["fingerprint"] = attributes["fingerprint"] | {"method settings": damage}
    store.update(sealed_attributes(attributes))
    with pytest.raises(StoreError, match="method settings is"):
        InfluenceRun(tmp_path / "run.zarr")


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_a_residual_that_is_no_number_is_refused(tmp_path):
    run(tmp_path / "run.zarr", lissa())
    Store(tmp_path / "run.zarr").update({"residual": "small"})
    with pytest.raises(StoreError, match="residual is 'small'"):
        InfluenceRun(tmp_path / "run.zarr")


def test_a_run_warns_of_its_residual_again_when_it_is_made_again(tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="after 12 iterations.*ExactInfluence") as told:
            made = run(tmp_path / "run.zarr", lissa(tolerance=1e-2))
        assert len(told) == 1
    assert made.residual > 1e-2


def test_converged_it_is_exact_and_tells_its_residual(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run(tmp_path / "run.zarr", lissa(0.2, 20_000, 1e-11), exact_sample=10)
    exact = run(MemoryStore(), ExactInfluence(network(), F.cross_entropy, 0.2))
    np.testing.assert_allclose(made.scores[...], exact.scores[...], rtol=1e-8, atol=1e-9)
    assert 0 < made.residual <= 1e-11
    assert made.approximation_error.score_error < 1e-9
    assert exact.residual is None
    facts = run_facts(made)["The run"]
    assert (facts["Method"], facts["Largest residual"]) == ("LiSSA", f"{made.residual:.2g}")
    assert "Largest residual" not in run_facts(exact)["The run"]
    page = write_report(made, tmp_path / "report.html").read_text()
    assert "LiSSA" in page
    assert "Largest residual" in page


def test_rows_are_kept_or_refused(tmp_path):
    with pytest.raises(SourceError, match="up to 32 times"):
        run(tmp_path / "run.zarr", lissa(), rows="recompute")
    assert not (tmp_path / "run.zarr").exists()
    with pytest.warns(UserWarning, match="LiSSA has not converged"):
        assert run(MemoryStore(), lissa(), rows="auto").plan.rows == "memory"


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_what_was_stopped_goes_on_and_keeps_its_residual(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole.zarr", lissa(), rows="zarr")
    stopped = tmp_path / "stopped.zarr"
    from pydvl_datainf.runner import tasks

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_mean", _fail)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, lissa(), rows="zarr")
    assert InfluenceRun(stopped).residual is None
    made = run(stopped, lissa(), rows="zarr")
    assert made.residual == whole.residual
    np.testing.assert_array_equal(made.scores[...], whole.scores[...])


def _fail(*_):
    raise KeyboardInterrupt


# A multiple of automatic damping


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_a_scale_multiplies_automatic_damping(tmp_path, rows):
    made = run(
        tmp_path / "run.zarr",
        DataInfInfluence(network(), F.cross_entropy, damping_scale=10),
        rows=rows,
    )
    G, V = gradients(TRAIN), gradients(TEST)
    damping = {b: 10 * dense.automatic_damping(g) for b, g in G.items()}
    assert made.damping == pytest.approx(damping, rel=1e-12)
    np.testing.assert_allclose(
        made.scores[...], dense.influences(V, G, G, damping), rtol=1e-8, atol=1e-9
    )


def test_a_scale_is_part_of_what_a_run_is(tmp_path):
    def influence(scale=None, **settings):
        return DataInfInfluence(network(), F.cross_entropy, damping_scale=scale, **settings)

    made = run(tmp_path / "run.zarr", influence(10))
    assert run(tmp_path / "run.zarr", influence(10.0)).damping == made.damping
    for other in (influence(), influence(11), influence(10, regularization={"0": 1.0})):
        with pytest.raises(StoreExistsError, match="damping"):
            run(tmp_path / "run.zarr", other)
    plain = run(tmp_path / "plain.zarr", influence())
    assert run(tmp_path / "plain.zarr", influence(1)).damping == plain.damping
    assert set(made.attrs["fingerprint"]["damping"].values()) == {"0.1 of mean square, times 10.0"}
    fitted = influence(10).fit([TRAIN])
    np.testing.assert_allclose(
        run(MemoryStore(), pickle.loads(pickle.dumps(fitted))).scores[...], made.scores[...]
    )
    with pytest.raises(DampingError, match="every block was given"):
        influence(10, regularization=1.0)
