"""The file of a report: what it may replace, and how it appears whole."""

import os
from contextlib import suppress
from pathlib import Path

from pydvl_datainf.errors import DataInfError

MARK = '<meta name="generator" content="pydvl-datainf report">'
"""Stands in the first lines of each report."""

HEAD = 1024
"""Bytes among which the mark is looked for."""


class ReportExistsError(DataInfError, FileExistsError):
    """Where a report is to be written, there is something that is not replaced."""


def is_report(path: Path) -> bool:
    """Whether a file is a page that this package wrote.

    Args:
        path: of a file, which need not exist.

    Returns:
        True if it begins like one.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(HEAD)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Checks that a report may be written to a path.

    Args:
        path: of the report.
        overwrite: replace any file.

    Raises:
        ReportExistsError: if a folder is there, or a file that is no report.
    """
    if path.is_dir():
        raise ReportExistsError(f"{path} is a folder. Choose another name for the report.")
    if path.exists() and not path.is_file():
        raise ReportExistsError(f"{path} is no regular file. Choose another name for the report.")
    if path.exists() and not overwrite and not is_report(path):
        raise ReportExistsError(
            f"{path} is there and is no report of this package. Choose another name for the "
            "report, or replace the file with overwrite=True."
        )


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, so that under its name it is there whole or as it was before.

    Args:
        path: of the file; its folder is made where it is missing.
        content: of the file.
    """
    target = path.resolve()  # what a link points to, not the link
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
