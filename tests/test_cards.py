"""Models and data on cards: on pretend ones, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_on_cards():
    scripts = [
        str(Path(__file__).with_name(f"on_{what}.py")) for what in ("cards", "several_cards")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *scripts]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
