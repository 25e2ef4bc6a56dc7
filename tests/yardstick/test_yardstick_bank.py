"""The bank: made once, goes on after a stop, and is never mistaken for another."""

import json
import signal

import killed
import linear
import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

import stopped_run
from pydvl_datainf import (
    ClusterError,
    DataInfInfluence,
    NonFiniteError,
    ObjectiveError,
    PlanError,
    StoreError,
    StoreExistsError,
    run_influences,
)
from pydvl_datainf.yardstick import (
    Bank,
    Scores,
    compare,
    half_subsets,
    retrain_on_all,
    retraining,
    validate,
)
from pydvl_datainf.yardstick.bank import HALVES


def validated(place, train=None, **options):
    train = linear.Regression() if train is None else train
    settings = {"subsets": 12, "progress": False} | options
    return validate(linear.scores(), train, bank=place, **settings)


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "retrained"


@pytest.fixture(scope="module")
def whole():
    """Losses of all cells by a loop, and what a call says that nothing disturbs."""
    train = linear.Regression()
    members = half_subsets(linear.N, 12, 0)
    losses = [[train(np.flatnonzero(row), seed) for seed in (0, 1)] for row in members]
    return np.array(losses), validated(MemoryStore())


def test_losses_are_kept_for_each_subset_and_seed(place, whole):
    validated(place)
    group = zarr.open_group(place, mode="r")
    assert (group["losses"][:] == whole[0]).all()
    assert (group["members"][:] == half_subsets(linear.N, 12, 0)).all()
    assert group["losses"].metadata.dimension_names == ("subset", "seed", "test")
    assert not place.with_name("retrained.lock").exists()


def test_what_is_kept_is_not_trained_again(place, whole):
    validated(place)
    train = linear.Regression()
    found = validated(place, train)
    assert train.calls == []
    assert (found.lds, found.error, found.slope) == (whole[1].lds, whole[1].error, whole[1].slope)


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_a_stopped_call_goes_on_to_the_same_numbers(place, whole, stop):
    with pytest.raises(KeyboardInterrupt):
        validated(place, linear.Regression(stop))
    train = linear.Regression()
    found = validated(place, train)
    assert len(train.calls) == 24 - stop
    assert (found.draws == whole[1].draws).all()
    assert (found.actual == whole[1].actual).all()


@pytest.mark.usefixtures("fork_server")
def test_a_killed_process_leaves_what_it_had_done(place, whole):
    ended = stopped_run.ended(killed.validate_until_killed, place, 9)
    assert ended == -signal.SIGKILL
    train = linear.Regression()
    found = validated(place, train)
    assert len(train.calls) == 24 - 9
    assert (found.draws == whole[1].draws).all()


def test_more_subsets_and_seeds_begin_with_the_same(place):
    first = validated(place)
    train = linear.Regression()
    more = validated(place, train, subsets=15, seeds=3)
    assert len(train.calls) == 15 * 3 - 12 * 2
    assert more.actual.shape == (linear.M, 15)
    again = linear.Regression()
    fewer = validated(place, again)
    assert again.calls == []
    assert (fewer.actual == first.actual).all()
    assert zarr.open_group(place, mode="r")["losses"].shape == (15, 3, linear.M)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:]]
)
def test_a_damaged_chunk_is_trained_again_and_nothing_else(place, whole, damage):
    validated(place)
    chunk = place / "losses" / "c" / "4" / "1" / "0"
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(StoreError, match="has 4 subsets with 2 seeds; 10 are needed"):
        compare({"exact": linear.scores()}, place)
    train = linear.Regression()
    found = validated(place, train)
    assert train.calls == [(np.flatnonzero(half_subsets(linear.N, 5, 0)[4]).tolist(), 1)]
    assert (found.actual == whole[1].actual).all()


def test_a_loss_that_is_not_finite_on_disk_is_trained_again(place):
    validated(place)
    zarr.open_group(place)["losses"][3, 0] = np.inf
    train = linear.Regression()
    validated(place, train)
    assert len(train.calls) == 1


@pytest.mark.parametrize("array", ["losses", "members", "full_losses"])
@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_damaged_or_missing_metadata_are_laid_out_again(place, whole, array, damage):
    """Missing as after a kill while the array was made longer."""
    validated(place)
    damage(place / array / "zarr.json")
    train = linear.Regression()
    found = validated(place, train)
    assert train.calls == []
    assert (found.actual == whole[1].actual).all()


def test_damaged_attributes_are_refused_and_the_losses_stay(place):
    validated(place)
    (place / "zarr.json").write_text("{")
    before = content(place)
    with pytest.raises(StoreExistsError, match=r"its zarr\.json is damaged"):
        validated(place)
    assert content(place) == before


def test_a_damaged_subset_is_written_again(place):
    validated(place)
    (place / "members" / "c" / "2" / "0").write_bytes(b"")
    train = linear.Regression()
    validated(place, train)
    assert train.calls == []
    members = zarr.open_group(place, mode="r")["members"][:]
    assert (members == half_subsets(linear.N, 12, 0)).all()


def test_subsets_that_the_seed_does_not_give_are_refused(place):
    validated(place)
    members = zarr.open_group(place)["members"]
    members[2] = ~members[2]
    with pytest.raises(StoreError, match=r"Subset 2 in .* is not what its seed gives"):
        validated(place)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"recipe": "twice as long"}, "recipe: '' in the store, 'twice as long' now"),
        ({"subset_seed": 1}, "subset seed: 0 in the store, 1 now"),
    ],
)
def test_another_recipe_is_refused_and_nothing_changed(place, options, told):
    validated(place)
    before = content(place)
    with pytest.raises(StoreError, match=told):
        validated(place, **options)
    assert content(place) == before


def test_other_data_is_refused_and_nothing_changed(place):
    validated(place)
    before = content(place)
    with pytest.raises(StoreError, match="training samples: 24 in the store, 23 now"):
        validate(linear.scores()[:, 1:], linear.Regression(), bank=place, progress=False)
    with pytest.raises(StoreError, match="ids: 'other' in the store") as caught:
        Bank(_other_ids(place), n=linear.N, m=linear.M, ids="these")
    assert "Choose another place" in str(caught.value)
    assert content(place) != before  # by `_other_ids` alone


def _other_ids(place):
    file = place / "zarr.json"
    told = json.loads(file.read_text())
    told["attributes"]["fingerprint"]["ids"] = "other"
    file.write_text(json.dumps(told))
    return place


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format_version": 2}, "has format version 2"),
        ({"fingerprint": {}}, "attributes of .* are damaged"),
        ({"format": "another"}, "no bank of retrainings"),
    ],
)
def test_attributes_of_another_kind_are_refused(place, change, told):
    validated(place)
    zarr.open_group(place).attrs.update(change)
    with pytest.raises(StoreError, match=told):
        validated(place)


def test_what_is_no_bank_is_never_touched(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    file.write_text("text")
    for location in (folder, file):
        with pytest.raises(StoreExistsError, match="Choose another place"):
            validated(location)
    assert content(tmp_path) == {folder / "letter.txt": b"dear", file: b"text"}


def test_a_run_is_no_bank(tmp_path):
    import torch

    model = torch.nn.Linear(2, 1)
    batch = [(torch.randn(4, 2), torch.randn(4, 1))]
    influence = DataInfInfluence(model, torch.nn.functional.mse_loss)
    run_influences(influence, batch, batch, tmp_path / "run.zarr", progress=False)
    with pytest.raises(StoreExistsError, match="no bank of retrainings"):
        validated(tmp_path / "run.zarr")


def test_an_empty_folder_is_filled(place):
    place.mkdir()
    (place / f"zarr.{'0' * 32}.partial").touch()  # what a killed writer leaves
    assert validated(place).subsets == 12


def test_two_calls_at_a_time_are_refused(place):
    bank = Bank(place, n=linear.N, m=linear.M, ids=Scores.of(linear.scores()).ids)
    with bank.locked(), pytest.raises(StoreError, match="Another run is writing to"):
        validated(place)


def test_there_has_to_be_a_bank_to_compare(place):
    with pytest.raises(StoreError, match="There are no retrainings in"):
        compare({"exact": linear.scores()}, place)


@pytest.mark.parametrize("answer", [0.5, np.zeros(4), np.zeros((5, 1)), np.array(["a"] * 5), None])
def test_a_training_that_does_not_return_losses_is_refused(place, answer):
    with pytest.raises(
        ObjectiveError, match=r"12 samples \(subset 0\) with seed 0 gave .* of the 5"
    ):
        validated(place, lambda indices, seed: answer)


def test_a_loss_that_is_not_finite_is_refused_by_its_sample(place):
    with pytest.raises(NonFiniteError, match="gave 2 losses that are not finite") as caught:
        validated(place, lambda indices, seed: np.array([1, 2, np.nan, 4, np.inf]))
    assert caught.value.sample == 2
    assert Bank.open(place).done(HALVES) == set()


def test_retraining_on_all_samples_is_kept(place):
    bank = Bank(place, n=linear.N, m=linear.M, ids="")
    train = linear.Regression()
    losses = retrain_on_all(bank, train, progress=False)
    assert train.calls == [(list(range(linear.N)), 0), (list(range(linear.N)), 1)]
    again = linear.Regression()
    assert (retrain_on_all(Bank.open(place), again, progress=False) == losses).all()
    assert again.calls == []
    expected = [linear.Regression()(np.arange(linear.N), seed) for seed in (0, 1)]
    assert (losses == expected).all()
    with pytest.raises(PlanError, match="seeds must be 1 or more"):
        retrain_on_all(bank, train, seeds=0)


def test_lost_workers_are_told_in_terms_of_the_bank(place, monkeypatch):
    class Lost:
        def map(self, *_):
            raise ClusterError("call run_influences again")

    bank = Bank(place, n=linear.N, m=linear.M, ids="")
    with pytest.raises(ClusterError, match="What was trained is in the bank"):
        list(retraining._train(bank, HALVES, np.ones((1, linear.N)), [(0, 0)], Lost(), []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": {"lr": 0.1}}, r"recipe must be text, got a dict. Pass json.dumps"),
        ({"recipe": None}, "recipe must be text"),
        ({"subset_seed": -1}, "subset_seed must be 0 or more"),
        ({"subset_seed": True}, "subset_seed must be a whole number"),
        ({"subset_seed": 1.0}, "subset_seed must be a whole number"),
        ({"subsets": 12.0}, "subsets must be a whole number"),
        ({"seeds": 2.0}, "seeds must be a whole number"),
        ({"checkpoints": float("nan")}, "checkpoints must be a whole number"),
        ({"checkpoints": 2.5}, "checkpoints must be a whole number"),
    ],
)
def test_what_could_not_be_asked_for_again_makes_no_bank(place, options, message):
    with pytest.raises(PlanError, match=message):
        validated(place, **options)
    assert not place.exists()


def test_numbers_may_be_those_of_numpy(place, whole):
    numbers = {name: np.int64(k) for name, k in {"subsets": 12, "seeds": 2}.items()}
    found = validated(place, subset_seed=np.int64(0), checkpoints=np.int32(1), **numbers)
    assert (found.lds, found.slope) == (whole[1].lds, whole[1].slope)
    validated(place)  # the same bank


def test_losses_may_be_bfloat16(place):
    def train(indices, seed):
        return torch.tensor(linear.Regression()(indices, seed)).bfloat16()

    found = validated(place, train)
    assert np.abs(found.actual - validated(MemoryStore()).actual).max() < 0.01 * found.actual.max()


def test_of_another_recipe_in_json_the_settings_that_differ_are_told(place):
    recipe = {"training": {"epochs": 6, "rate": 0.1}, "data": "a"}
    validated(place, recipe=json.dumps(recipe))
    recipe["training"]["epochs"] = 1
    with pytest.raises(StoreError) as refused:
        validated(place, recipe=json.dumps(recipe))
    assert "- recipe: training: epochs: 6 in the store, 1 now" in str(refused.value)
    assert "rate" not in str(refused.value)
