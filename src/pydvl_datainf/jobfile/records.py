"""The records that a job names: of a file, or of a data set that `datasets` loads."""

from pathlib import Path

from pydvl_datainf.huggingface import read_records
from pydvl_datainf.huggingface.records import Placed, read_dataset
from pydvl_datainf.jobfile.paths import file_in, model_in
from pydvl_datainf.jobfile.schema import HubData, Job


def records_of(job: Job, data: str | HubData, folder: Path) -> list[Placed]:
    """Reads test or training data.

    Args:
        job: says how texts are quoted.
        data: a file's name, or a data set.
        folder: from which relative paths are meant.

    Returns:
        All records, each with its place.
    """
    if isinstance(data, HubData):
        # A folder, or a name on the hub, as with models.
        return read_dataset(model_in(folder, data.dataset), data.config, data.split)
    return read_records(file_in(folder, data), quoted=job.quoting is None)
