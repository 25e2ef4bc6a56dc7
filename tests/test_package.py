"""The package as a whole: its public names, and what importing it needs."""

import subprocess
import sys

import pydvl_datainf

OPTIONAL = ("datasets", "matplotlib", "peft", "pydantic", "sklearn.metrics", "transformers")


def test_every_public_name_exists():
    assert all(hasattr(pydvl_datainf, name) for name in pydvl_datainf.__all__)
    assert sorted(pydvl_datainf.__all__) == pydvl_datainf.__all__


def test_importing_needs_no_optional_package():
    """Packages of the extras are not imported; pyDVL itself brings some of them."""
    found = f"print(sorted((set(sys.modules) - before) & set({OPTIONAL})))"
    script = (
        "import sys, pydvl.influence.torch; before = set(sys.modules); "
        f"import pydvl_datainf; {found}; import pydvl_datainf.cli; {found}"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["[]", "[]"], run.stderr
