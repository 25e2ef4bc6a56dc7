"""The training data of a run that no job made, in a file that its user names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydvl_datainf.errors import JobError, SourceError
from pydvl_datainf.huggingface.records import Placed, brief, column
from pydvl_datainf.jobfile.sources import FileSource
from pydvl_datainf.results.facts import is_of_job
from pydvl_datainf.results.reader import InfluenceRun

END = re.compile(r"\s*<[^<>\s]+>\s*")
"""What trl puts behind a text: a token that ends it."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file of training samples that have ids.

    Attributes:
        train: the file.
    """

    train: Path
    task: ClassVar[str] = "a run that no job made"

    @property
    def source(self) -> FileSource:
        """The file."""
        return FileSource(self.train)

    def records(self, run: InfluenceRun) -> Sequence[Placed]:
        """Reads the samples, and checks that the run was made of them, in their order.

        Ids are compared, and texts and numbers where both have a column of that name. A text of the
        run may have a token more: trl ends what is to be said by one.

        Args:
            run: made of them.

        Returns:
            For each training sample its place and its record.

        Raises:
            JobError: if a job made the run, which knows the file and how it is read.
            SourceError: if there are no ids, or the file is another; names the first sample that
                differs.
        """
        if is_of_job(run):
            raise JobError(
                f"{run.store} was made by a job, which names its training data. Leave --train out."
            )
        records = self.source.records()
        if len(records) != run.plan.n:
            raise SourceError(
                f"{self.train} holds {len(records):,} samples, and {run.store} was made of "
                f"{run.plan.n:,}. Name the file that it was made of."
            )
        columns = run.metadata("train")
        for i, placed in enumerate(records):
            self._check_same(placed, "id", column(placed, "id"), run.train_ids[i], run)
            for name in columns.keys() & placed[1].keys() - {"id"}:
                now, then = placed[1][name], columns[name][i]
                ended = isinstance(now, str) and END.fullmatch(str(then).removeprefix(now))
                if isinstance(now, str | int | float | None) and not (now and ended):
                    self._check_same(placed, name, now, then, run)
        return records

    def _check_same(
        self, placed: Placed, name: str, now: object, then: object, run: InfluenceRun
    ) -> None:
        if str(now) != str(then):
            raise SourceError(
                f"{placed[0]}: '{name}' is {brief(now)}, and was {brief(then)} when {run.store} "
                "was made. Name the file that it was made of, with the samples in that order and "
                "their ids in a column that is called id."
            )
