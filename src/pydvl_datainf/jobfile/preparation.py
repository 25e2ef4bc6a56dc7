"""From a job to what a run takes: a builder of the influence model, batches, and columns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from pydvl_datainf.errors import JobError
from pydvl_datainf.huggingface import InfluenceBuilder, ModelFiles
from pydvl_datainf.huggingface.builder import Files
from pydvl_datainf.jobfile.data import Material, Side, placed_in_words
from pydvl_datainf.jobfile.images import checked_files, image_material
from pydvl_datainf.jobfile.paths import model_in
from pydvl_datainf.jobfile.reference import with_reference
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.jobfile.texts import check_text_files, text_material
from pydvl_datainf.objectives import AnswerMargin, Margin, Objective
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.run import run_influences

PACKAGES = {"denoising": ("diffusers", "peft")}
OF_TEXTS = ("transformers", "peft", "tokenizers")

QUERIES: Mapping[str, Callable[[], Objective]] = {
    "sequence-classification": Margin,
    "preference": AnswerMargin,
}
"""For each task what `query: margin` asks of test samples."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run takes.

    Attributes:
        job: that was prepared.
        material: what it names, read.
        builder: makes the influence model.
    """

    job: Job
    material: Material
    builder: InfluenceBuilder

    @property
    def sides(self) -> Mapping[str, Side]:
        """Test and training data."""
        return {"test": self.material.test, "train": self.material.train}

    @property
    def left_out(self) -> dict[str, str]:
        """In words, of which samples no token counts."""
        named = {"test": self.material.test, "training": self.material.train}
        return {
            f"{name} samples left out": placed_in_words(side.left_out)
            for name, side in named.items()
            if side.left_out
        }

    @property
    def told(self) -> dict[str, Any]:
        """What is stored of the run."""
        heads = self.material.heads
        return {
            **self.left_out,
            "job": self.job.as_told(),
            "heads trained with the adapter": list(heads),
            "heads take part": bool(heads) and self.job.parameters in ("adapters+heads", "all"),
            "versions": {
                package: version(package) for package in PACKAGES.get(self.job.task, OF_TEXTS)
            },
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What is asked of the run, as `run_influences` takes it."""
        ids = {name: side.ids for name, side in self.sides.items() if side.ids is not None}
        return {
            "memory": self.job.memory,
            "rows": self.job.rows,
            "rank": self.job.rank,
            "basis_sample": self.job.basis_sample,
            "basis_seed": self.job.basis_seed or 0,
            "sides": self.job.sides,
            "top_k": self.job.top_k,
            "by_block": self.job.by_block,
            "self_influence": self.job.self_influence,
            "exact_sample": self.job.exact_sample,
            "normalize": self.job.normalize,
            "ids": ids or None,
            "metadata": {
                **{name: side.columns for name, side in self.sides.items()},
                "run": self.told,
            },
        }

    def loader(self, side: str) -> DataLoader[Any]:
        """Batches of a side, in the order of the file."""
        return self.sides[side].samples.to_loader(self.job.batch_size)

    def places(self, store: Store) -> list[Store]:
        """Where the results are, in the order in which they are made."""
        return [store]

    def run(
        self, store: str, *, overwrite: bool, progress: bool, reference: str | None = None
    ) -> InfluenceRun:
        """Computes the influences, or what is missing of them.

        Args:
            store: where the result goes.
            overwrite: replace another run.
            progress: show bars on stderr.
            reference: run whose reference of a preference serves again; None = that in `store`.

        Returns:
            The complete run.
        """
        whole = self
        if self.job.task == "preference":
            begun = None if overwrite else store
            begun = begun if reference is None else reference
            material = with_reference(
                self.material, self.builder, begun, self.job.batch_size, progress
            )
            whole = Prepared(self.job, material, self.builder)
        return run_influences(
            self.builder,
            whole.loader("test"),
            whole.loader("train"),
            store,
            client=self.job.scheduler,
            n_jobs=self.job.jobs,
            overwrite=overwrite,
            progress=progress,
            **whole.settings,
        )


def prepare(job: Job, folder: Path, progress: bool) -> Prepared:
    """Reads the data; of the model only what that needs.

    Args:
        job: what is to be done.
        folder: from which relative paths are meant.
        progress: show bars on stderr.

    Returns:
        What a run takes.
    """
    _check_has_adapter(job, folder)
    on_images = job.task == "denoising"
    material = image_material(job, folder) if on_images else text_material(job, folder, progress)
    return Prepared(job, material, builder_of(job, material.files, material.objective))


def builder_of(
    job: Job, files: Files, objective: Objective, asked: Objective | None = None
) -> InfluenceBuilder:
    """What makes the influence model of a job.

    Args:
        job: what is to be done.
        files: where its model is.
        objective: of its task.
        asked: what is asked of test samples in place of what the job asks.

    Returns:
        A builder.
    """
    on_images = job.task == "denoising"
    checkpoint = files.tuned if job.preconditioner and isinstance(files, ModelFiles) else None
    return InfluenceBuilder(
        files,
        objective,
        parameters=job.parameters,
        device=job.device,
        regularization=job.damping,
        damping_scale=job.damping_scale,
        settings=job.method_settings,
        block_structure=job.blocks,
        batch_size=job.batch_size if on_images else None,
        max_tokens=None if on_images else job.max_tokens,
        method=job.method,
        test_objective=asked or (None if job.query is None else QUERIES[job.task]()),
        checkpoint=checkpoint,
    )


def check_files(job: Job, folder: Path) -> None:
    """Checks that the model of a job is there, and reads no data.

    Args:
        job: what is to be done.
        folder: from which relative paths are meant.
    """
    _check_has_adapter(job, folder)
    if job.task == "denoising":
        checked_files(job, folder)
    else:
        check_text_files(job, folder)


def _check_has_adapter(job: Job, folder: Path) -> None:
    """Finds early what would show only once data and model are read; of names on the hub only then.

    Raises:
        JobError: if parameters of an adapter are to take part, and there is none.
    """
    model = Path(model_in(folder, job.model))
    is_there = any((model / name).exists() for name in ("config.json", "model_index.json"))
    holds_none = is_there and not (model / "adapter_config.json").exists()
    if job.adapter is None and job.parameters in ("adapters", "adapters+heads") and holds_none:
        raise JobError(
            f"'parameters' is {job.parameters}, and {model} holds no adapter. Name the 'adapter', "
            'or say parameters: all, or patterns such as ["classifier.*"].'
        )
