"""A job on several checkpoints: a run for each beside the result, and their sum."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pydvl_datainf.errors import StoreExistsError
from pydvl_datainf.jobfile.preparation import Prepared, check_files, prepare
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.sums import sum_runs


@dataclass(frozen=True, slots=True)
class PreparedSum:
    """What the runs of several checkpoints take.

    Attributes:
        job: that was prepared.
        folder: from which relative paths are meant.
        first: what the first run takes; the others are prepared when it is their turn.
    """

    job: Job
    folder: Path
    first: Prepared

    @property
    def checkpoints(self) -> Sequence[str]:
        """As the job names them."""
        return self.job.checkpoints or ()

    @property
    def left_out(self) -> Mapping[str, str]:
        """In words, of which samples no token counts."""
        return self.first.left_out

    @property
    def told(self) -> Mapping[str, Any]:
        """What is stored of the sum."""
        return self.first.told | {"job": self.job.as_told()}

    def places(self, store: Store) -> list[Store]:
        """Where the results are, in the order in which they are made: runs, and their sum.

        Args:
            store: of the sum.

        Returns:
            Stores: those of the runs are in a folder beside that of the sum.
        """
        numbers = range(1, len(self.checkpoints) + 1)
        return [*(Store(f"{store}.parts/{k}.zarr") for k in numbers), store]

    def run(self, store: str, *, overwrite: bool, progress: bool) -> InfluenceRun:
        """Computes the influences of each checkpoint, or what is missing of them, and adds them.

        Args:
            store: where the sum goes.
            overwrite: replace other runs; those of this very job go on, or stay.
            progress: show bars, and which checkpoint is worked on, on stderr.

        Returns:
            The complete sum.
        """
        *places, total = self.places(Store(store))
        runs: list[InfluenceRun] = []
        for k, (path, place) in enumerate(zip(self.checkpoints, places, strict=True), 1):
            if progress:
                tqdm.write(f"Checkpoint {k} of {len(places)}: {path!r}", file=sys.stderr)
            runs.append(self._run_of(path, place, runs, overwrite, progress))
        return sum_runs(
            runs,
            total,
            self.job.weights,
            metadata=self.told,
            overwrite=overwrite,
            progress=progress,
        )

    def _run_of(
        self,
        path: str,
        place: Store,
        before: Sequence[InfluenceRun],
        overwrite: bool,
        progress: bool,
    ) -> InfluenceRun:
        """The run of one checkpoint; a complete one is no reason to compute it anew."""
        job = self.job.of_checkpoint(path)
        prepared = prepare(job, self.folder, progress) if before else self.first
        reference = str(before[0].store) if before else None
        try:
            return prepared.run(
                place.location, overwrite=False, progress=progress, reference=reference
            )
        except StoreExistsError:
            if not overwrite:
                raise
        return prepared.run(place.location, overwrite=True, progress=progress, reference=reference)


def prepare_job(job: Job, folder: Path, progress: bool) -> Prepared | PreparedSum:
    """Reads the data; of the models only what that needs.

    Args:
        job: what is to be done, on one model or on several checkpoints.
        folder: from which relative paths are meant.
        progress: show bars on stderr.

    Returns:
        What its runs take.
    """
    if job.checkpoints is None:
        return prepare(job, folder, progress)
    jobs = [job.of_checkpoint(path) for path in job.checkpoints]
    for each in jobs:  # all, before anything is computed for one
        check_files(each, folder)
    return PreparedSum(job, folder, prepare(jobs[0], folder, progress))
