"""The package as a whole: its public names, what importing it needs, and the README's examples."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pydvl_datainf

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
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


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("position", range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run(position, tmp_path, monkeypatch):
    """Each after those before it, whose names it may use."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in EXAMPLES[: position + 1]:
        names.pop("scores", None)
        exec(example, names)
    assert np.isfinite(np.asarray(names["scores"])).all()


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 4
