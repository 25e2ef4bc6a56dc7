"""Settings for all tests."""

import os

import pytest
import torch
from hypothesis import settings

# Contracts are no test files, but their assertions are to tell as much.
pytest.register_assert_rewrite("method_contract", "store_contract")

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
