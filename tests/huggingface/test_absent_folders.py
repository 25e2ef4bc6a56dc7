"""Folders of models and adapters that are not there, as Python code names them."""

import pytest

from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface import ModelFiles
from pydvl_datainf.huggingface.models import check_initialisation

READ = {
    "tokenizer": lambda: ModelFiles("causal-lm", "basse").tokenizer(),
    "configuration": lambda: ModelFiles("causal-lm", "basse", "adapter").config(),
    "heads": lambda: ModelFiles("causal-lm", "base", "adaptor").adapter_heads(),
    "adapter": lambda: check_initialisation("adaptor"),
}


@pytest.mark.parametrize("what", READ)
def test_a_misspelt_folder_is_told_with_like_names(tmp_path, monkeypatch, what):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    no = rf"^There is no folder {tmp_path}/(basse|adaptor)\. Did you mean {tmp_path}/(base|adapter)"
    with pytest.raises(
        ModelError, match=rf"{no}\? From the hub: Could not load .*(basse|adaptor): "
    ):
        READ[what]()


def test_of_a_folder_that_is_there_no_other_is_suggested(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^Could not load the configuration of base: "):
        ModelFiles("causal-lm", "base").config()
