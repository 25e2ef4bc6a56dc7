"""Settings for all tests."""

import os

import pytest
import torch
from hypothesis import settings

# These are no test files, but their assertions are to tell as much.
pytest.register_assert_rewrite(
    "commands",
    "method_contract",
    "objective_runs",
    "report_in_browser",
    "store_contract",
    "tuned_again",
    "undisturbed",
)

# There are several of this name, which the collection of doctests takes for one module.
collect_ignore_glob = ["*conftest.py"]

# One thread: with several, small matrices cost more in waiting than in arithmetic.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """Folders of tiny tuned models."""
    from tuned import save_tuned

    return save_tuned(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def client():
    """Of two Dask workers in processes of their own."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client
