"""Compressed runs that go on elsewhere after damage, and what a query on them may compare."""

import numpy as np
import pytest

import piece_runs
from compressed_runs import loader, run_elsewhere
from method_runs import datainf, exact, results, stopped
from piece_runs import M, N, network
from pydvl_datainf import PlanError, run_influences
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner.tasks import bases
from small_runs import close

ASKED = {"rows": "compressed", "rank": 20, "basis_sample": 21}


def run(store, build=exact, **settings):
    return piece_runs.run(store, build, **{"test": loader(M), **ASKED, **settings})


def ask(done, store, build=exact, **settings):
    usual = {"tile": (2, None), "memory": "1MiB", "progress": False}
    return run_influences(build(model=network()), loader(M), done, store, **usual | settings)


def learning_otherwise(patch):
    """As another machine may, whose singular vectors have other signs and another order."""
    learned = bases.leading_directions
    patch.setattr(bases, "leading_directions", lambda S, r: -learned(S, r).flip(0))


@pytest.fixture
def damaged(tmp_path):
    """A run that lost a basis, beside its scores."""
    scores = run(tmp_path / "run.zarr").scores[:]
    (tmp_path / "run.zarr" / "bases" / "2" / "c" / "0" / "0").unlink()
    return tmp_path / "run.zarr", scores


def test_rows_follow_a_basis_that_is_learned_again(tmp_path, monkeypatch, damaged):
    store, scores = damaged
    done = run_elsewhere(monkeypatch, learning_otherwise, run, store)
    done.check()
    close(ask(done, tmp_path / "query.zarr").scores[:], scores, 1e-3)  # half precision
    assert not (store / "work").exists()


@pytest.mark.parametrize("task", ["write_sample", "write_rows"])
def test_so_they_do_where_that_is_stopped(tmp_path, monkeypatch, damaged, task):
    store, scores = damaged
    with stopped(monkeypatch, task, 1) as patch:
        learning_otherwise(patch)
        run(store)
    done = run(store)
    close(ask(done, tmp_path / "query.zarr").scores[:], scores, 1e-3)
    done.check()


def test_a_begun_run_does_not_mix_vectors_in_two_bases(tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    with stopped(monkeypatch, "write_piece", 1):  # test gradients wait as coordinates
        run(store)
    (store / "bases" / "2" / "c" / "0" / "0").unlink()
    done = run_elsewhere(monkeypatch, learning_otherwise, run, store)
    whole = run(tmp_path / "whole.zarr")
    close(done.scores[:], whole.scores[:], 1e-3)
    assert results(store).keys() == results(tmp_path / "whole.zarr").keys()


def test_a_begun_query_does_not_mix_vectors_in_two_bases(tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    done = run(store)
    scores = ask(done, tmp_path / "whole.zarr").scores[:]
    with stopped(monkeypatch, "write_piece", 1):
        ask(done, tmp_path / "query.zarr")
    (store / "bases" / "2" / "c" / "0" / "0").unlink()
    done = run_elsewhere(monkeypatch, learning_otherwise, run, store)
    close(ask(done, tmp_path / "query.zarr").scores[:], scores, 1e-3)


def test_a_query_compares_as_many_samples_as_its_run(tmp_path):
    done = run(tmp_path / "run.zarr", datainf)
    settings = {"memory": 200_000, "exact_sample": N}
    found = ask(done, tmp_path / "query.zarr", datainf, **settings).approximation_error
    assert found.n == N
    assert np.isfinite(found.score_error)
    whole = InfluenceRun(piece_runs.run(tmp_path / "whole.zarr", datainf).store.location)
    with pytest.raises(PlanError, match="with the exact inverse takes 331,824"):  # premise
        ask(whole, tmp_path / "other.zarr", datainf, **settings)
