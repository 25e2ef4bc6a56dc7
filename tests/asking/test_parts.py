"""Which parts of a sum are asked, and which are refused by name."""

import shutil

import pytest
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence, InfluenceRun, run_influences, sum_runs
from pydvl_datainf.asking import ask
from pydvl_datainf.asking.parts import (
    ENCODERS,
    check_places,
    given_for,
    place_of_part,
    runs_to_ask,
)
from pydvl_datainf.errors import PlanError, StoreError
from sums_of_runs import TEST, network, run

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return [run(folder / f"{seed}.zarr", seed, rows="zarr", tile=(13, 11)) for seed in (0, 1)]


@pytest.fixture
def runs(made, tmp_path):
    return [
        InfluenceRun(shutil.copytree(one.store.path, tmp_path / one.store.path.name))
        for one in made
    ]


def added(runs, store):
    return sum_runs(runs, store, **QUIET)


def test_the_parts_of_a_sum_are_asked_in_their_order(runs, tmp_path):
    total = added(runs[::-1], tmp_path / "sum.zarr")
    assert [str(found.store) for found in runs_to_ask(total)] == [str(r.store) for r in runs[::-1]]
    assert runs_to_ask(runs[0]) == [runs[0]]


def test_parts_elsewhere_are_asked_where_that_is_allowed(runs, tmp_path):
    total = added(runs, tmp_path / "apart" / "sum.zarr")
    with pytest.raises(StoreError, match=r"Part 1 of .*sum\.zarr is .*0\.zarr, which is not below"):
        runs_to_ask(total)
    found = runs_to_ask(InfluenceRun(total.store.location, allow_other_places=True))
    assert [each.store.path for each in found] == [each.store.path for each in runs]


def test_kept_answers_are_asked_where_the_rows_are_below_their_folder(runs, tmp_path):
    for folder in (tmp_path, tmp_path / "apart"):
        answers = [
            run_influences(
                DataInfInfluence(network(seed), F.cross_entropy),
                DataLoader(TensorDataset(*TEST), 4),
                one,
                place_of_part(folder / "answers.zarr", seed),
                **QUIET,
            )
            for seed, one in enumerate(runs)
        ]
        added(answers, folder / "answers.zarr")
    found = runs_to_ask(InfluenceRun(tmp_path / "answers.zarr"))
    assert [each.run_of_rows().store.path for each in found] == [one.store.path for one in runs]
    with pytest.raises(StoreError, match=r"answers.zarr.parts/1.zarr uses the training rows in"):
        runs_to_ask(InfluenceRun(tmp_path / "apart" / "answers.zarr"))


def test_parts_that_moved_with_their_sum_are_found(runs, tmp_path):
    for k, one in enumerate(runs, 1):
        shutil.copytree(one.store.path, tmp_path / "first" / "sum.zarr.parts" / f"{k}.zarr")
    parts = [InfluenceRun(tmp_path / f"first/sum.zarr.parts/{k}.zarr") for k in (1, 2)]
    added(parts, tmp_path / "first" / "sum.zarr")
    (tmp_path / "first").rename(tmp_path / "moved")
    found = runs_to_ask(InfluenceRun(tmp_path / "moved" / "sum.zarr"))
    parts = tmp_path / "moved" / "sum.zarr.parts"
    assert [each.store.path for each in found] == [parts / "1.zarr", parts / "2.zarr"]
    shutil.copytree(parts / "2.zarr", parts / "1.zarr", dirs_exist_ok=True)
    with pytest.raises(StoreError, match=r"1\.zarr, part 1 of .* holds another run now"):
        runs_to_ask(InfluenceRun(tmp_path / "moved" / "sum.zarr"))


@pytest.mark.parametrize("slash", ["", "/"])
def test_answers_replace_nothing_that_is_asked(runs, tmp_path, slash):
    for k, one in zip((2, 1), runs, strict=True):  # in the places of the other's answers
        shutil.copytree(one.store.path, tmp_path / "out.zarr.parts" / f"{k}.zarr")
    parts = [InfluenceRun(tmp_path / f"out.zarr.parts/{k}.zarr") for k in (2, 1)]
    total = added(parts, tmp_path / "sum.zarr")
    for place in ("out.zarr", "out.zarr.parts/1.zarr", "sum.zarr"):
        with pytest.raises(StoreError, match=r"holds a run that is asked\. Choose another place"):
            check_places(total, runs_to_ask(total), f"{tmp_path / place}{slash}")
    check_places(total, runs_to_ask(total), tmp_path / "answers.zarr")
    check_places(total, runs_to_ask(total), None)


def test_parts_that_are_others_or_gone_are_named(runs, tmp_path):
    total, first = added(runs, tmp_path / "sum.zarr"), runs[0].store.path
    shutil.rmtree(first)
    with pytest.raises(StoreError, match=r"0\.zarr"):
        runs_to_ask(total)
    shutil.copytree(runs[1].store.path, first)
    with pytest.raises(StoreError, match=r"0\.zarr, part 1 of .* holds another run now"):
        runs_to_ask(total)


def test_sums_of_sums_and_parts_without_rows_are_refused(runs, tmp_path):
    total = added(runs, tmp_path / "sum.zarr")
    with pytest.raises(StoreError, match=r"sum\.zarr, part 2 of .*, is a sum itself"):
        runs_to_ask(added([runs[0], total], tmp_path / "twice.zarr"))
    bare = run(tmp_path / "bare.zarr", 2, rows="memory", tile=(13, 11))
    with pytest.raises(StoreError, match=r"bare\.zarr keeps no training rows"):
        runs_to_ask(added([runs[0], bare], tmp_path / "other.zarr"))


def test_each_part_needs_a_model_and_may_share_an_encoder(runs, tmp_path):
    total = added(runs, tmp_path / "sum.zarr")
    assert given_for(total, "a", ENCODERS) == ["a", "a"]
    assert given_for(total, ("a", "b"), "influence models") == ["a", "b"]
    assert given_for(runs[0], "a", "influence models") == ["a"]
    with pytest.raises(PlanError, match="is a sum of 2 runs, and there are 1 influence models"):
        ask(total, lambda: None, "a", encoder=None)
    with pytest.raises(PlanError, match="is a single run, and there are 2 encoders: give one"):
        ask(runs[0], lambda: None, "a", encoder=[None, None])


def test_answers_of_parts_go_beside_those_of_the_sum(tmp_path):
    assert place_of_part(tmp_path / "kept.zarr", 1) == f"{tmp_path}/kept.zarr.parts/2.zarr"
    assert place_of_part("s3://b/kept.zarr", 0) == "s3://b/kept.zarr.parts/1.zarr"
    assert place_of_part(None, 0) is None
