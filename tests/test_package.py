"""The package as a whole: its public names, and what importing it needs."""

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pydvl_datainf

OPTIONAL = ("datasets", "matplotlib", "peft", "pydantic", "sklearn.metrics", "transformers")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pydvl_datainf"


def test_every_public_name_exists():
    assert all(hasattr(pydvl_datainf, name) for name in pydvl_datainf.__all__)
    assert sorted(pydvl_datainf.__all__) == pydvl_datainf.__all__


def test_importing_needs_no_optional_package():
    """Packages of the extras are not imported; pyDVL itself brings some of them."""
    found = f"print(sorted((set(sys.modules) - before) & set({OPTIONAL})))"
    script = (
        "import sys, pydvl.influence.torch; before = set(sys.modules); "
        f"from pydvl_datainf import *; from pydvl_datainf.huggingface import *; {found}; "
        f"import pydvl_datainf.cli; {found}"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["[]", "[]"], run.stderr


def test_the_wheel_holds_what_is_no_code():
    """Templates and py.typed, which setuptools takes only where setup.cfg lists them."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = {
        path
        for package, patterns in settings["options.package_data"].items()
        for pattern in patterns.split()
        for path in (ROOT / "src" / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in PACKAGE.rglob("*.*") if path.is_file()}
    assert listed == {path for path in files if path.suffix not in {".py", ".pyc"}}
