"""The package as a whole: its public names, and what importing it needs."""

import subprocess
import sys

import pytest

import pydvl_datainf

OPTIONAL = ("datasets", "matplotlib", "peft", "pydantic", "sklearn.metrics", "transformers")


def test_every_public_name_exists():
    assert all(hasattr(pydvl_datainf, name) for name in pydvl_datainf.__all__)
    assert sorted(pydvl_datainf.__all__) == pydvl_datainf.__all__


@pytest.mark.parametrize("statement", ["import pydvl_datainf", "import pydvl_datainf.cli"])
def test_importing_needs_no_optional_package(statement):
    """Packages of the extras are not imported; pyDVL itself brings some of them."""
    script = (
        f"import sys, pydvl.influence.torch; before = set(sys.modules); {statement}; "
        f"print(sorted((set(sys.modules) - before) & set({OPTIONAL})))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr
