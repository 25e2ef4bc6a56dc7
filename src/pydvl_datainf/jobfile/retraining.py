"""A job's model, tuned again on some of its training data: what scores are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface.builder import move_model
from pydvl_datainf.huggingface.models import ModelFiles
from pydvl_datainf.huggingface.placement import device_called
from pydvl_datainf.huggingface.untuned import load_untuned, seeded
from pydvl_datainf.jobfile.data import Side
from pydvl_datainf.jobfile.paths import model_in, path_in
from pydvl_datainf.jobfile.preparation import Prepared, prepare
from pydvl_datainf.jobfile.reference import with_reference
from pydvl_datainf.jobfile.schema import TEXTS, Job, Training
from pydvl_datainf.jobfile.tuning import Losses, bar_of, compute_losses, tune
from pydvl_datainf.objectives import Objective

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Retraining:
    """Tunes a job's model again on a part of the training data. Can be pickled.

    A seed decides, in this order, a head that the base does not have, the new adapter, dropout, and
    by a generator of its own the order of the samples. On the CPU the same samples and the same
    seed give the same bits, with the same number of threads.

    Args:
        job: with `training`.
        folder: from which its relative paths are meant.
        progress: show bars of steps on stderr.

    Raises:
        JobError: if the job is on images or several checkpoints, or does not say how its model was
            tuned.
    """

    job: Job
    folder: Path
    progress: bool = False

    def __post_init__(self) -> None:
        if self.job.task not in TEXTS:
            raise JobError(
                f"Models of task {self.job.task} are not tuned again from a job. Give "
                "pydvl_datainf.yardstick.validate a function that does."
            )
        if self.job.checkpoints is not None:
            raise JobError(
                "A job on several 'checkpoints' is a sum of runs of several models, and 'training' "
                "tunes one. Validate the job of one of them, with it as 'adapter' or 'model'; for "
                "the sum, pydvl_datainf.yardstick.compare takes it beside that on the same bank."
            )
        if self.job.training is None:
            raise JobError(
                f"The job has no 'training', which says how its model was tuned: {_required()}."
            )
        object.__setattr__(self, "folder", self.folder.resolve())  # other processes are elsewhere
        _prepared.cache_clear()  # files may have changed since they were read

    def __call__(self, indices: Sequence[int] | NDArray[np.intp], seed: int = 0) -> Array:
        """Tunes the model again.

        Args:
            indices: positions of training samples, in any order: it has no effect.
            seed: is added to that of `training`.

        Returns:
            The losses of the test samples by the job's objective, or by its `query`, shape (m,).
        """
        material = self.prepared.material
        positions, device = sorted(int(i) for i in indices), device_called(self.job.device)
        seed += self.training.seed
        with seeded(seed, device):
            model = load_untuned(self._files, self._base, self.training.trained)
            move_model(model, device)
            with bar_of(self.training, len(positions), shown=self.progress) as bar:
                tune(model, self._losses(material.train), positions, self.training, seed, bar)
            return compute_losses(model, self._asked)

    def of_tuned(self) -> Array:
        """The losses of the test samples under the job's own model, shape (m,)."""
        return compute_losses(self.prepared.builder().model, self._asked)

    @property
    def training(self) -> Training:
        """How the model was tuned."""
        return cast(Training, self.job.training)

    @property
    def prepared(self) -> Prepared:
        """The job's data, read once in each process."""
        return _prepared(self.job.model_dump_json(), str(self.folder))

    @property
    def _files(self) -> ModelFiles:
        return cast(ModelFiles, self.prepared.material.files)  # of a task on texts

    @property
    def _base(self) -> str | None:
        base = self.training.base
        return None if base is None else model_in(self.folder, base)

    @property
    def _asked(self) -> Losses:
        """What is asked of the test samples: their loss, or what the job has in its place."""
        return self._losses(self.prepared.material.test, self.prepared.builder.test_objective)

    def _losses(self, side: Side, objective: Objective | None = None) -> Losses:
        objective = objective or self.prepared.material.objective
        return Losses(side.samples, objective, self.job.max_tokens, side.samples.lengths)


@lru_cache(maxsize=1)
def _prepared(text: str, folder: str) -> Prepared:
    job = Job.model_validate_json(text)
    prepared = prepare(job, Path(folder), progress=False)
    if job.task != "preference":
        return prepared
    store = path_in(Path(folder), job.out)
    material = with_reference(prepared.material, prepared.builder, store, job.batch_size, False)
    return Prepared(job, material, prepared.builder)


def _required() -> str:
    fields: dict[str, Any] = dict(Training.model_fields)
    return ", ".join(name for name, field in fields.items() if field.is_required())
