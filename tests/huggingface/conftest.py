"""Fixtures of the tests of models and records."""

import shutil

import pytest

from pydvl_datainf.huggingface import ModelFiles


@pytest.fixture
def files(tuned, tmp_path):
    shutil.copytree(tuned.causal, tmp_path / "model")
    shutil.copytree(tuned.causal_adapter, tmp_path / "adapter")
    return ModelFiles("causal-lm", str(tmp_path / "model"), str(tmp_path / "adapter"))
