"""The folder of results: refused where it holds something, replaced only by a complete one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydvl_datainf.demo.errors import OutputError

SCORES = "influences.zarr"
ROC_PLOT = "roc_curves.png"
DISTRIBUTION_PLOT = "score_distributions.png"
FILES = frozenset({SCORES, ROC_PLOT, DISTRIBUTION_PLOT})


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that takes the place of `out` if all goes well.

    Until then it is a hidden folder beside `out`, which stays as it is; after an error the hidden
    folder is removed. `check_output` says which `out` is refused, before anything is yielded.

    Args:
        out: the folder of results; its parents are made where missing.
        overwrite: whether results that are there already may be replaced.

    Yields:
        The folder to write into.

    Raises:
        OutputError: if `out` may not be replaced; before anything is yielded.
    """
    out = out.resolve()
    check_output(out, overwrite)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        check_output(out, overwrite)
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_output(out: Path, overwrite: bool) -> None:
    """Checks that writing to `out` destroys nothing but, where allowed, an earlier result.

    Args:
        out: a folder that need not exist.
        overwrite: whether an earlier result may be replaced.

    Raises:
        OutputError: if `out` is a file, holds an earlier result that may not be replaced, or
            holds anything else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file; choose another folder for the results.")
    found = {path.name for path in out.iterdir()}
    foreign = sorted(found - FILES)
    if foreign:
        raise OutputError(
            f"{out} holds what this command does not write ({foreign[0]}, for one), so it is never "
            f"replaced; choose another folder for the results."
        )
    if found and not overwrite:
        raise OutputError(
            f"{out} holds an earlier result; choose another folder, or replace it with --overwrite."
        )


def _replace(out: Path, new: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
