"""How far a run is from the exact inverse: its comparison, against the dense oracle."""

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from rich.console import Console

import dense
from exact_runs import BLOCKS, M, N, rows_of, run, stored_rows, truth
from method_runs import MATRICES, datainf, exact, loader, plain, results, scaled
from pydvl_datainf import PlanError, approximation_error, compute_self_influence
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import APPROXIMATION
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.choices import exact_sample_of
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.sizing import sample_bytes, sampled_queries
from pydvl_datainf.tables import info_tables
from small_runs import close, samples


@pytest.mark.parametrize("asked", [-1, 2.5, True, "all", None])
def test_the_sample_for_the_error_is_a_number(store, asked):
    with pytest.raises(PlanError, match="exact_sample must be a number of samples, 0 or"):
        run(store, datainf(), exact_sample=asked)


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
    scores = results(store)
    done = run(store, datainf(), rows=rows, exact_sample=SAMPLE)
    train, test = chosen(done.plan, SAMPLE)
    more = done.attrs["gradients"] - before.attrs["gradients"]
    # Rows come in pieces of a batch, of which the first samples are taken.
    assert len(test) + of_train * len(train) <= more <= len(test) + of_train * N
    assert scores.items() <= results(store).items()
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
    assert f"Difference of influences {found.score_error:.2g} times their size" in text


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
        method=METHODS["DataInf"],
        widths={"a": 1000, "b": 500},
        dtype="float32",
        layers={},
        curvature={},
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
