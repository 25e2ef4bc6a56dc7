"""The training data of a run that no job made, in a file that its user names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pydvl_datainf.errors import JobError, SourceError
from pydvl_datainf.huggingface.record_values import brief, column, conversation_text
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.huggingface.several_labels import write_labels
from pydvl_datainf.jobfile.sources import FileSource
from pydvl_datainf.results.facts import is_of_job
from pydvl_datainf.results.reader import InfluenceRun

END = re.compile(r"\s*<[^<>\s]+>\s*")
"""What trl puts behind a text: a token that ends it."""

PAIR = ("chosen", "rejected")
"""Columns out of which trl takes what both begin with, where a pair has no prompt of its own."""


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

        Ids are compared, and texts, numbers, conversations and lists where both have a column of
        that name. A text of the run may have a token more: trl ends what is to be said by one. It
        also takes the prompt of a pair out of both answers.

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
        shared = columns.keys() & {name for _, record in records for name in record} - {"id"}
        for i, placed in enumerate(records):
            then = {name: values[i] for name, values in columns.items()}
            now = column(placed, "id")
            if str(now) != str(run.train_ids[i]):
                raise self._differs(placed, "id", now, run.train_ids[i], run)
            for name in sorted(shared):
                now = placed[1].get(name)
                behind_prompt = name in PAIR and "prompt" in then and "prompt" not in placed[1]
                prompt = then["prompt"] if behind_prompt else ""
                if not _is_same(now, then[name], prompt):
                    raise self._differs(placed, name, now, then[name], run)
        return records

    def _differs(
        self, placed: Placed, name: str, now: object, then: object, run: InfluenceRun
    ) -> SourceError:
        told = brief(conversation_text(now))
        return SourceError(
            f"{placed[0]}: '{name}' is {told}, and was {brief(then)} when {run.store} "
            "was made. Name the file that it was made of, with the samples in that order and "
            "their ids in a column that is called id."
        )


def _is_same(now: Any, then: Any, prompt: str) -> bool:
    """Whether a value of a record is what the run keeps of it; `prompt` was taken out of it."""
    if isinstance(now, list | dict):
        return _is_among_forms(now, str(then), prompt)
    if isinstance(now, str) and isinstance(then, str):
        kept = prompt + then
        return now == kept or (bool(now) and _is_ended(now, kept))
    if isinstance(then, np.floating) and isinstance(now, str | int | float):
        return str(now) == str(then) or _number(now) == float(then)  # 1 beside 0.5 is kept as 1.0
    if isinstance(then, np.bool_):
        return str(now).lower() == str(then).lower()  # as CSV may have it
    return str(now) == str(then) or not isinstance(now, str | int | float | None)


def _is_ended(now: str, kept: str) -> bool:
    return kept.startswith(now) and END.fullmatch(kept.removeprefix(now)) is not None


def _is_among_forms(now: Any, then: str, prompt: str) -> bool:
    """Whether text is what a run keeps of a conversation, of labels, or of another list."""
    if isinstance(now, list) and all(isinstance(turn, dict) and "role" in turn for turn in now):
        now = [{"content": None, **turn} for turn in now]  # as `datasets` fills what is missing
    talk = conversation_text(now)
    if isinstance(talk, str):
        return talk == (f"{prompt}\n{then}" if prompt else then)
    try:
        forms = [str(now), json.dumps(now), json.dumps(now, ensure_ascii=False)]
    except (TypeError, ValueError):  # images and the like, of which a run keeps no text
        return True
    return then in (forms if isinstance(now, dict) else [*forms, write_labels(now)])


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
