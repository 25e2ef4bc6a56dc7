"""Finished runs to be copied and damaged."""

import shutil

import pytest

from damaged_runs import KINDS, values
from stopped_run import run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Stores of finished runs by kind, to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, settings in KINDS.items():
        run(folder / kind, **settings)
    return folder


@pytest.fixture(scope="session")
def right(whole):
    return {kind: values(whole / kind) for kind in KINDS}


@pytest.fixture
def copied(whole, tmp_path):
    return lambda kind: shutil.copytree(whole / kind, tmp_path / "run.zarr")
