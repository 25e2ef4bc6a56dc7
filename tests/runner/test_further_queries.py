"""Further queries on the rows that a run keeps, and their self-influences."""

import numpy as np
import pytest
from torch.nn import functional as F

from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    ModelError,
    StoreError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from small_runs import N, build, loader, network, query_loader, run, train_loader


def test_a_query_reads_no_training_data(tmp_path, truth):
    columns = {name: ["x"] * N for name in ("label", "text", "a", "b", "c")}
    first = run(tmp_path / "first.zarr", rows="zarr", metadata={"train": columns})
    other = loader(4, 9, 3)
    second = run_influences(
        build(), other, first, tmp_path / "second.zarr", progress=False, ids={"test": list("abcd")}
    )
    assert second.attrs["gradients"] == 4
    assert second.damping == first.damping
    assert second.metadata("train")["label"].tolist() == ["x"] * N
    assert second.test_ids.tolist() == list("abcd")
    whole = run(tmp_path / "whole.zarr", test=other, rows="zarr")
    np.testing.assert_array_equal(second.scores[...], whole.scores[...])
    np.testing.assert_array_equal(compute_self_influence(second), first.self_influence())
    again = run_influences(
        build(), other, first, tmp_path / "second.zarr", progress=False, ids={"test": list("abcd")}
    )
    assert again.attrs == second.attrs
    third = run_influences(build(), query_loader(), second, tmp_path / "third.zarr", progress=False)
    np.testing.assert_array_equal(third.scores[...], first.scores[...])


def test_queries_of_a_run_that_was_stopped_are_refused(tmp_path, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "write_piece", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped.zarr", rows="zarr")
    stopped = InfluenceRun.open(tmp_path / "stopped.zarr")
    with pytest.raises(
        StoreError, match=r"stopped.zarr is not complete. Call run_influences again"
    ):
        run_influences(build(), query_loader(), stopped, tmp_path / "q.zarr")


def test_queries_are_refused_without_rows_or_with_another_model(tmp_path):
    kept = run(tmp_path / "kept.zarr", rows="zarr")
    no_rows = r"not.zarr keeps no training rows \(rows='memory'\)\. .* made with rows=\"zarr\""
    with pytest.raises(StoreError, match=no_rows):
        run_influences(
            build(), query_loader(), run(tmp_path / "not.zarr", rows="memory"), tmp_path / "q.zarr"
        )
    other = build()
    other.model[2].bias.data += 1
    with pytest.raises(ModelError, match=r"(?s)another model.*2\.bias"):
        run_influences(other, query_loader(), kept, tmp_path / "q.zarr", progress=False)
    assert not (tmp_path / "q.zarr").exists()


def test_a_query_knows_when_its_rows_are_those_of_another_run(tmp_path):
    settings = {"rows": "zarr", "self_influence": True}
    first = run(tmp_path / "first.zarr", **settings)
    second = run_influences(
        build(), query_loader(), first, tmp_path / "second.zarr", progress=False
    )
    np.testing.assert_array_equal(second.relative_influence(), first.relative_influence())
    assert second.has_self_influence
    run(tmp_path / "first.zarr", train=loader(N, 8, 5), overwrite=True, **settings)
    assert not second.has_self_influence
    for values in (second.self_influence, second.relative_influence):
        with pytest.raises(StoreError, match="holds another run now: training data differ"):
            values()
    run(tmp_path / "first.zarr", overwrite=True, **settings)  # the same again
    assert second.has_self_influence


def test_whether_self_influences_are_there(tmp_path):
    first = run(tmp_path / "first.zarr", rows="zarr")
    second = run_influences(
        build(), query_loader(), first, tmp_path / "second.zarr", progress=False
    )
    assert (first.has_self_influence, second.has_self_influence) == (False, False)
    with pytest.raises(StoreError, match=r"compute_self_influence\(run\) makes them"):
        second.self_influence()
    np.testing.assert_array_equal(compute_self_influence(second), first.self_influence())
    assert (first.has_self_influence, second.has_self_influence) == (True, True)


OTHERS = [{"damping_scale": 10}, {"regularization": 0.5}, {"regularization": {"2": 0.5}}]


@pytest.mark.parametrize("settings", OTHERS)
def test_a_query_that_asks_for_another_damping_is_refused(tmp_path, settings):
    kept = run(tmp_path / "kept.zarr", rows="zarr")
    other = DataInfInfluence(network(), F.cross_entropy, **settings)
    with pytest.raises(DampingError, match=r"asks for another in [12] blocks.*damping_scale out"):
        run_influences(other, query_loader(), kept, tmp_path / "q.zarr", progress=False)
    assert not (tmp_path / "q.zarr").exists()


@pytest.mark.parametrize("own", [{}, {"damping_scale": 10}, {"regularization": 0.5}])
def test_a_query_may_ask_for_the_damping_of_the_run_or_for_none(tmp_path, own):
    made = DataInfInfluence(network(), F.cross_entropy, **own)
    kept = run(tmp_path / "kept.zarr", made, rows="zarr")
    fitted = made.unfitted().fit(train_loader())
    for number, asked in enumerate((build(), made, fitted)):
        done = run_influences(
            asked, query_loader(), kept, tmp_path / f"{number}.zarr", progress=False
        )
        np.testing.assert_array_equal(done.scores[...], kept.scores[...])
