"""The columns of a job's images, which need not be read for them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydvl_datainf.huggingface.record_values import column
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.jobfile.schema import Job


def is_arrays(path: Path) -> bool:
    """Whether a file holds images themselves, and not their paths."""
    return path.suffix == ".npz"


def image_column(job: Job) -> str:
    """The column of images' paths."""
    return job.columns.image or "image"


def shown_of(job: Job, path: Path) -> Callable[[Placed], Mapping[str, Any]]:
    """What the result of a job shows of a record.

    Args:
        job: names the columns.
        path: of the data.

    Returns:
        A function of a record and its place.
    """
    names = {"label": job.columns.label, "prompt": job.columns.prompt}
    names["image"] = None if is_arrays(path) else image_column(job)
    return lambda placed: {
        what: column(placed, name) for what, name in names.items() if name is not None
    }
