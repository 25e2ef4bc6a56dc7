"""The packages of the extra [report], found without importing them."""

from importlib.util import find_spec

PACKAGES = ("itables", "jinja2", "matplotlib", "pandas", "sklearn")
"""As import names."""


def check_extra() -> None:
    """Checks that the packages of the extra [report] are installed.

    Raises:
        ModuleNotFoundError: if some are not; names all of them and says what to install.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"A report needs {', '.join(missing)}, not installed here: "
            "pip install 'pydvl-datainf[report]'",
            name=missing[0],
        )
