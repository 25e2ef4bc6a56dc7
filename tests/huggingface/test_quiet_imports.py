"""What optional packages say when they are imported."""

import logging

import pytest

from pydvl_datainf.huggingface.extra import KERNELS, imported


@pytest.mark.parametrize(
    ("said", "is_heard"),
    [
        ("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please ...", False),
        ("The backend is broken: %s", True),
    ],
)
def test_only_the_hint_at_a_quicker_kernel_is_not_heard(caplog, monkeypatch, said, is_heard):
    monkeypatch.setattr(logging.getLogger("bitsandbytes"), "level", logging.NOTSET)
    imported("json")
    imported("json")
    logging.getLogger(KERNELS).warning(said, "no kernels")
    assert [record.msg for record in caplog.records] == [said] * is_heard
    assert len(logging.getLogger(KERNELS).filters) == 1
