"""The demo in a folder of its own."""

import pytest

from small_demo import Demo


@pytest.fixture
def demo(tmp_path, monkeypatch):
    return Demo(tmp_path / "parent" / "results", monkeypatch)
