"""Executors: a contract for every place where work is done."""

import os
import uuid
from collections import Counter

import joblib
import pytest

from pydvl_datainf import DataInfError, PlanError, StoreError
from pydvl_datainf.runner import executors
from pydvl_datainf.runner.executors import Dask, InProcess, Joblib, executor_for
from pydvl_datainf.runner.executors.cluster import RETRIES

MIB = 2**20


# Work


def scaled(item, factor, shift):
    return factor * item + shift


def process(item):
    return os.getpid()


def refused(item, folder):
    """An error of ours for one of the items; notes each attempt."""
    (folder / f"{item}-{uuid.uuid4().hex}").touch()
    if item == 3:
        raise StoreError(f"Item {item} is refused. Mend it.")
    return item


def broken(item, folder):
    """An error of somebody else."""
    (folder / f"{item}-{uuid.uuid4().hex}").touch()
    raise ZeroDivisionError(f"item {item} broke down")


def broken_once(item, folder):
    (folder / f"{item}-{uuid.uuid4().hex}").touch()
    if attempts(folder)[item] == 1:
        raise ZeroDivisionError(f"item {item} broke down")
    return item


def attempts(folder):
    return Counter(int(path.name.partition("-")[0]) for path in folder.iterdir())


class Big:
    """A megabyte that notes in which processes it is unpacked."""

    def __init__(self, folder):
        self.folder, self.content = folder, bytes(MIB)

    def __setstate__(self, state):
        vars(self).update(state)
        (self.folder / f"{os.getpid()}-{uuid.uuid4().hex}").touch()


def length(item, big):
    return os.getpid(), len(big.content)


# Contract


class ExecutorContract:
    """Subclasses tell `executor`, and how often work is tried that breaks down."""

    attempts = 1
    processes = 2

    def done(self, executor, work, items, *shared):
        return list(executor.map(work, items, [executor.share(value) for value in shared], "work"))

    @pytest.mark.parametrize("count", [1, 2, 23])
    def test_does_every_item_once(self, executor, count):
        items = [5 * i for i in range(count)]
        found = self.done(executor, scaled, items, 3, 0.5)
        assert sorted(found) == [3 * item + 0.5 for item in items]

    def test_without_items_there_are_no_results(self, executor):
        assert self.done(executor, scaled, [], 3, 0.5) == []

    def test_works_again_with_what_was_shared(self, executor):
        shared = [executor.share(2), executor.share(1)]
        for items in ([1, 2], [4]):
            found = sorted(executor.map(scaled, items, shared, "work"))
            assert found == [2 * item + 1 for item in items]

    def test_works_in_the_processes_that_it_tells_of(self, executor):
        found = set(self.done(executor, process, range(12)))
        assert (found == {os.getpid()}) is executor.shares_memory
        assert (os.getpid() in found) is executor.shares_memory
        assert len(found) <= self.processes

    def test_tells_how_much_is_done_at_once(self, executor):
        assert executor.at_once == self.processes

    def test_our_errors_come_through_and_are_not_tried_again(self, executor, tmp_path):
        with pytest.raises(StoreError, match=r"^Item 3 is refused\. Mend it\.$") as caught:
            self.done(executor, refused, [1, 3], tmp_path)
        assert type(caught.value) is StoreError
        assert isinstance(caught.value, DataInfError)
        assert attempts(tmp_path)[3] == 1

    def test_other_errors_come_through_after_so_many_attempts(self, executor, tmp_path):
        with pytest.raises(ZeroDivisionError, match="item 4 broke down"):
            self.done(executor, broken, [4], tmp_path)
        assert attempts(tmp_path) == {4: self.attempts}
        assert self.done(executor, scaled, [1], 1, 1) == [2]  # goes on working

    def test_big_objects_are_unpacked_once_in_a_process(self, executor, tmp_path):
        big = executor.share(Big(tmp_path))
        found = [r for _ in range(3) for r in executor.map(length, range(6), [big], "work")]
        assert {size for _, size in found} == {MIB}
        processes = {process for process, _ in found} - {os.getpid()}
        unpacked = attempts(tmp_path)
        assert {process: unpacked[process] for process in processes} == dict.fromkeys(processes, 1)

    def test_shows_a_bar_only_when_asked(self, executor, capsys):
        self.done(executor, process, range(3))
        assert capsys.readouterr().err == ""
        executor.progress = True
        self.done(executor, process, range(3))
        assert "work: " in capsys.readouterr().err


class TestInProcess(ExecutorContract):
    processes = 1

    @pytest.fixture
    def executor(self):
        executor = InProcess(progress=False)
        yield executor
        executor.close()

    def test_is_the_default_and_keeps_the_order(self):
        executor = executor_for(None, None, False)
        assert type(executor) is InProcess
        assert self.done(executor, scaled, [3, 1, 2], 1, 0) == [3, 1, 2]

    def test_shares_the_object_itself(self, executor):
        value = object()
        assert executor.share(value) is value


@pytest.mark.usefixtures("fork_server")
class TestJoblib(ExecutorContract):
    @pytest.fixture
    def executor(self):
        executor = Joblib(2, progress=False)
        yield executor
        executor.close()

    def test_is_chosen_by_a_number_of_processes(self):
        executor = executor_for(None, 2, False)
        executor.close()
        assert type(executor) is Joblib

    def test_forgets_what_was_shared(self):
        executor = Joblib(2, progress=False)
        path = executor.share("a secret")
        assert path.is_relative_to(executor.folder)
        executor.close()
        assert not executor.folder.exists()

    def test_refuses_threads(self):
        with (
            joblib.parallel_config(backend="threading"),
            pytest.raises(PlanError, match=r"runs threads.*parallel_config\(backend=\"loky\"\)"),
        ):
            Joblib(2, progress=False)


def known_here():
    return dict(executors.cluster._here)


class TestDask(ExecutorContract):
    attempts = 1 + RETRIES

    @pytest.fixture
    def executor(self, client):
        executor = Dask(client, progress=False)
        yield executor
        executor.close()

    def test_is_chosen_by_a_client_but_not_with_a_number_of_processes(self, client):
        executor = executor_for(client, None, False)
        executor.close()
        assert type(executor) is Dask
        assert client.status == "running"  # it is the caller's
        with pytest.raises(PlanError, match="client or n_jobs, not both"):
            executor_for(client, 2, False)

    def test_what_breaks_down_once_is_done_in_the_end(self, executor, tmp_path):
        assert self.done(executor, broken_once, [1], tmp_path) == [1]
        assert attempts(tmp_path) == {1: 2}

    def test_forgets_what_was_shared(self, client):
        executor = Dask(client, progress=False)
        shared = [executor.share(2), executor.share(1)]
        list(executor.map(scaled, range(6), shared, "work"))
        keys = {future.key for future in shared}
        assert keys <= set().union(*client.run(known_here).values())
        executor.close()
        assert not keys & set().union(*client.run(known_here).values())
        assert {future.status for future in shared} == {"cancelled"}
