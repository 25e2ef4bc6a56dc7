"""Stores of sums: never replaced unasked, stopped and gone on with, damaged and mended."""

import shutil
import signal

import pytest

import stopped_run
from pydvl_datainf import InfluenceRun, StoreError, StoreExistsError
from pydvl_datainf.results.record import faults
from pydvl_datainf.results.store import Store
from small_runs import close
from sums_of_runs import add, content, run, truth


def test_another_run_is_never_replaced_unasked(made, tmp_path):
    place = tmp_path / "sum.zarr"
    add(made, place)
    before = content(place)
    with pytest.raises(StoreExistsError, match=r"sum.zarr holds another run(.|\n)*parts: "):
        add(made, place, [1.0, 1.0, 1.0])
    with pytest.raises(StoreExistsError, match=r"holds another run(.|\n)*it is a sum of runs"):
        run(place, self_influence=True)
    with pytest.raises(StoreExistsError, match=r"holds another run(.|\n)*method: "):
        add(made[1:], shutil.copytree(made[0].store.path, tmp_path / "run.zarr"), [1.0, 1.0])
    assert content(place) == before
    close(add(made, place, [1.0, 1.0, 1.0], overwrite=True).scores[...], sum_of_all())
    assert run(place, overwrite=True).parts == ()


def sum_of_all():
    return sum(truth(seed)[0].sum(1) for seed in range(3))


def test_a_run_that_is_to_be_added_is_not_replaced(tmp_path):
    runs = [run(tmp_path / f"{seed}.zarr", seed) for seed in (0, 1)]
    before = content(tmp_path)
    for place in (tmp_path / "1.zarr", tmp_path):
        with pytest.raises(StoreExistsError, match=r"zarr, which is to be added"):
            add(runs, place, None, overwrite=True)
    assert content(tmp_path) == before


def test_the_store_is_locked(made, tmp_path):
    place = tmp_path / "sum.zarr"
    with Store(place).locked(), pytest.raises(StoreError, match="Another run is writing"):
        add(made, place)


def test_a_complete_sum_is_left_as_it_is_even_without_its_runs(made, tmp_path):
    copies = [shutil.copytree(r.store.path, tmp_path / r.store.path.name) for r in made]
    runs = [InfluenceRun(copy) for copy in copies]
    place = tmp_path / "sum.zarr"
    add(runs, place)
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    (copies[1] / "scores/c/0/0").unlink()
    add(runs, place)
    assert before == {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}


class Stop(BaseException):
    pass


def test_a_sum_stopped_at_any_write_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    runs = [
        run(tmp_path / f"{seed}.zarr", seed, by_block=True, self_influence=True, tile=(13, 6))
        for seed in (0, 1)
    ]
    write, written = Store.write, []

    def counted(self, name, *arguments):
        written.append(name)
        write(self, name, *arguments)

    monkeypatch.setattr(Store, "write", counted)
    whole = content(add(runs, tmp_path / "whole.zarr", [0.3, 0.7]).store.path)
    names = list(written)
    assert {"scores", "mean_influence", "self_influence", "test", "block"} <= set(names)

    def stopped(self, name, *arguments):
        written.append(name)
        arguments = {True: (), False: arguments}[len(written) > stop]  # as of one that is killed
        write(self, name, *arguments)

    for stop in range(len(names)):
        place = tmp_path / f"stopped{stop}.zarr"
        written.clear()
        monkeypatch.setattr(Store, "write", stopped)
        with pytest.raises(TypeError, match="missing 2 required"):
            add(runs, place, [0.3, 0.7])
        assert not InfluenceRun(place).is_complete
        monkeypatch.setattr(Store, "write", counted)
        written.clear()
        add(runs, place, [0.3, 0.7])
        assert len(written) == len(names) - stop  # nothing is done twice
        assert content(place) == whole
        InfluenceRun(place).check()


def sum_killed_in_write(place, key, parts):
    stopped_run.die_in_write(place, key, 1)
    add([InfluenceRun(part) for part in parts], place, [0.5, 2.0])


@pytest.mark.usefixtures("fork_server")
def test_a_sum_that_is_killed_within_a_file_goes_on_to_the_same_bits(made, tmp_path):
    add(made[:2], tmp_path / "whole.zarr", [0.5, 2.0])
    places, place = [str(r.store) for r in made[:2]], tmp_path / "sum.zarr"
    ended = stopped_run.ended(sum_killed_in_write, place, "scores/c/1/2", places)
    assert ended == -signal.SIGKILL
    assert not InfluenceRun(place).is_complete
    assert list(place.rglob("*.partial"))  # the premise: the file was being written
    add(made[:2], place, [0.5, 2.0])
    assert content(place) == content(tmp_path / "whole.zarr")
    assert not list(place.rglob("*.partial"))
    InfluenceRun(place).check()


def test_a_stopped_sum_goes_on_with_overwrite_too(made, tmp_path, monkeypatch):
    place, write = tmp_path / "sum.zarr", Store.write

    def stop_at_means(self, name, *arguments):
        if name == "mean_influence":
            raise Stop
        write(self, name, *arguments)

    monkeypatch.setattr(Store, "write", stop_at_means)
    with pytest.raises(Stop):
        add(made, place)
    monkeypatch.setattr(Store, "write", write)
    created = InfluenceRun(place).attrs["created"]
    with pytest.raises(StoreError, match=r"not complete \(9 of 9 chunks.*Call sum_runs again"):
        InfluenceRun(place).mean_influence()
    scores = {file: file.stat().st_mtime_ns for file in (place / "scores").rglob("0")}
    done = add(made, place, overwrite=True)
    assert done.attrs["created"] == created
    assert scores == {file: file.stat().st_mtime_ns for file in (place / "scores").rglob("0")}
    done.check()


@pytest.mark.parametrize("name", ["scores", "mean_influence", "self_influence", "test", "block"])
def test_damage_is_named_and_mended(made, tmp_path, name):
    place = tmp_path / "sum.zarr"
    add(made, place)
    whole = content(place)
    chunk = next(file for file in (place / name).rglob("c/**/*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"chunks: {name}/c/.*Call sum_runs again"):
        InfluenceRun(place).check()
    add(made, place)
    assert content(place) == whole


def test_attributes_that_cannot_be(made, tmp_path):
    attributes = add(made, tmp_path / "sum.zarr").attrs
    assert list(faults(attributes)) == []
    told, plan = attributes["fingerprint"], attributes["plan"]
    part = told["parts"][0]
    damaged = {
        "fingerprint: parts is": {"fingerprint": told | {"parts": [part | {"weight": -1}]}},
        "fingerprint: parts": {"fingerprint": told | {"parts": []}},
        "parts_in are not": {"parts_in": attributes["parts_in"][:2]},
        "parts_in is": {"parts_in": [1, 2, 3]},
        "plan: rows are": {"plan": plan | {"rows": "zarr"}},
        "are not as they were written": {
            "fingerprint": told | {"parts": [part | {"weight": 7}, *told["parts"][1:]]}
        },
    }
    for message, changes in damaged.items():
        assert message in next(faults(attributes | changes))
    run_of_one = made[0].attrs
    assert "plan: rows are" in next(
        faults(run_of_one | {"plan": run_of_one["plan"] | {"rows": "none"}})
    )
