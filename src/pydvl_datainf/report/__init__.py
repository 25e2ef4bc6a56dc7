"""A run as one page of HTML, which needs no network and no other file.

Of its modules only `bounds` and `file` can do without the extra [report].
"""

from pathlib import Path
from typing import Any

from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.extra import check_extra
from pydvl_datainf.report.file import ReportExistsError, check_replaceable, is_report, write_whole
from pydvl_datainf.results.reader import InfluenceRun

__all__ = [
    "Bounds",
    "ReportExistsError",
    "check_extra",
    "is_report",
    "write_report",
    "write_token_page",
]


def write_report(
    run: InfluenceRun | Any,
    path: Path | str,
    *,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    images: Path | str = ".",
    overwrite: bool = False,
) -> Path:
    """Writes a run as one page of HTML.

    Args:
        run: a complete run, or the path, URL or Zarr store of one.
        path: of the page. A page that an earlier call wrote there is replaced.
        bounds: how much of the run the page holds; it says what was left out.
        images: folder from which the paths of images in the metadata are meant, and below which
            the images must lie.
        overwrite: replace any file.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: if a package of the extra [report] is missing; says what to install.
        ReportExistsError: if a folder is there, or a file that is no report.
        StoreError: if the run is not complete, or damaged.

    Example:
        >>> write_report("influences.zarr", "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    check_extra()
    # These need the extra [report], which is known to be installed only here.
    from pydvl_datainf.report.contents import contents_of
    from pydvl_datainf.report.page import page_of

    path = Path(path)
    check_replaceable(path, overwrite)
    run = run if isinstance(run, InfluenceRun) else InfluenceRun(run)
    write_whole(path, page_of(contents_of(run, bounds, Path(images))))
    return path


def write_token_page(
    run: InfluenceRun,
    path: Path | str,
    *,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> Path:
    """Writes answers that were asked token by token as one page of HTML.

    Args:
        run: complete, made by `ask` with by_token=True.
        path: of the page. A page that an earlier call wrote there is replaced.
        bounds: `k` training samples at either end of each answer, `tests` answers, and `characters`
            of the training samples' texts together; the page says what was left out.
        overwrite: replace any file.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: if a package of the extra [report] is missing; says what to install.
        ReportExistsError: if a folder is there, or a file that is no report.
        StoreError: if the run is another one, not complete, or damaged.
    """
    check_extra()
    from pydvl_datainf.report.tokens import token_page_of

    path = Path(path)
    check_replaceable(path, overwrite)
    write_whole(path, token_page_of(run, bounds))
    return path
