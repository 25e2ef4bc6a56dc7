"""Fixtures of the tests of models and records."""

import shutil

import pytest

from pydvl_datainf.huggingface import ModelFiles


@pytest.fixture
def files(tuned, tmp_path):
    shutil.copytree(tuned.causal, tmp_path / "model")
    shutil.copytree(tuned.causal_adapter, tmp_path / "adapter")
    return ModelFiles("causal-lm", str(tmp_path / "model"), str(tmp_path / "adapter"))


@pytest.fixture(scope="session")
def trainers(tmp_path_factory):
    """One of each kind, finished."""
    from trl_trainers import FORMS, lora, pair, reward_model, trained

    folder = tmp_path_factory.mktemp("trainers")
    return {
        "SFT": trained("SFT", folder, FORMS["messages"][1], peft_config=lora()),
        "DPO": trained("DPO", folder, pair, peft_config=lora()),
        "Reward": trained(
            "Reward", folder, pair, model=reward_model(), peft_config=lora("SEQ_CLS")
        ),
    }
