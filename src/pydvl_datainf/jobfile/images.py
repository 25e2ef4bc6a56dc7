"""The data and the model of a job on images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import (
    DiffusionFiles,
    ImageReader,
    ImageSamples,
    read_arrays,
    read_records,
)
from pydvl_datainf.huggingface.classes import label_id
from pydvl_datainf.huggingface.diffusion import embeddings_of, latents_of
from pydvl_datainf.huggingface.images import seed_of
from pydvl_datainf.huggingface.record_values import brief, column, text_column
from pydvl_datainf.huggingface.records import LabelName, Placed
from pydvl_datainf.jobfile.columns import columns_of
from pydvl_datainf.jobfile.data import Material, Side
from pydvl_datainf.jobfile.image_tables import image_column, is_arrays, shown_of
from pydvl_datainf.jobfile.paths import file_in, path_in
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.objectives import Denoising


def image_material(job: Job, folder: Path) -> Material:
    """Reads images, and what the model is told of them.

    Images become latents where the pipeline has an autoencoder, and prompts become the hidden
    states of its text encoder.

    Args:
        job: what is to be done.
        folder: from which relative paths are meant.

    Returns:
        The material of a run.
    """
    files = checked_files(job, folder)
    conditions = Conditions(files, job)
    objective = Denoising.from_scheduler(files.scheduler(), job.timesteps)
    test, train = (
        _side(job, what, file_in(folder, str(data)), conditions)
        for what, data in (("test", job.test), ("training", job.train))
    )
    return Material(files, objective, test, train, (), unit="images")


def checked_files(job: Job, folder: Path) -> DiffusionFiles:
    """Where the model and its adapter are, once it is known that they are there.

    Args:
        job: names them.
        folder: from which relative paths are meant.

    Returns:
        The files.
    """
    files = DiffusionFiles(
        model=path_in(folder, job.model),
        adapter=None if job.adapter is None else path_in(folder, job.adapter),
        dtype=job.dtype,
        trust_pickle=job.trust_pickle,
    )
    files.check()
    return files


class Conditions:
    """What makes tensors of images and of what is known of them.

    Args:
        files: the model and the parts of its pipeline.
        job: names the columns.
    """

    def __init__(self, files: DiffusionFiles, job: Job):
        self.config = files.config()
        self.vae = files.part("vae")
        self.job = job
        self.tokenizer, self.encoder = None, None
        if job.columns.prompt is not None:
            self.tokenizer, self.encoder = files.part("tokenizer"), files.part("text_encoder")
            if self.tokenizer is None or self.encoder is None:
                raise SourceError(
                    f"{files.model} has no tokenizer and text_encoder, which column "
                    f"'{job.columns.prompt}' is for. Leave it out, or name a whole pipeline."
                )

    def reader(self, folder: Path) -> ImageReader:
        """How images are read that lie in a folder."""
        config, times = self.config, 1
        channels = int(config["in_channels"])
        if self.vae is not None:
            channels = int(self.vae.config.in_channels)
            times = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = config.get("sample_size")
        sides = [size, size] if isinstance(size, int) else size
        if not isinstance(sides, list) or [type(side) for side in sides] != [int, int]:
            raise SourceError(
                f"The model's configuration says that its sample_size is {size!r}, so it is not "
                "known to which size images are to be scaled. Give them as arrays (.npz)."
            )
        height, width = sides
        return ImageReader(
            folder, channels, (height * times, width * times), image_column(self.job)
        )

    def samples(self, records: Sequence[Placed], images: Sequence[Tensor]) -> ImageSamples:
        """The samples of one side."""
        # Of the images: the last bits of latents differ between machines.
        seeds = [0 if self.job.noise == "common" else seed_of(image) for image in images]
        if self.vae is not None and images[0].shape[0] == self.vae.config.in_channels:
            images = latents_of(self.vae, images)
        self._check(images, records)
        told: dict[str, Sequence[Any]] = {}
        label, prompt = self.job.columns.label, self.job.columns.prompt
        if label is not None:
            names, count = self.job.labels or (), self.config.get("num_class_embeds")
            told["class_labels"] = [_class(placed, label, names, count) for placed in records]
        if prompt is not None:
            texts = [text_column(placed, prompt) for placed in records]
            told["encoder_hidden_states"] = embeddings_of(self.tokenizer, self.encoder, texts)
        return ImageSamples.from_images(images, seeds, told)

    def _check(self, images: Sequence[Tensor], records: Sequence[Placed]) -> None:
        for image, (place, _) in zip(images, records, strict=True):
            if image.shape != images[0].shape or image.shape[0] != self.config["in_channels"]:
                raise SourceError(
                    f"{place}: an image of shape {tuple(image.shape)}; all must be alike and have "
                    f"{self.config['in_channels']} channels."
                )


def _side(job: Job, what: str, path: Path, conditions: Conditions) -> Side:
    if is_arrays(path):
        records, images = read_arrays(path)
    else:
        records, reader = read_records(path), conditions.reader(path.parent)
        images = [reader.read(placed) for placed in records]
    columns, ids = columns_of(job, what, records, shown_of(job, path))
    return Side(conditions.samples(records, images), columns, ids)


def _class(placed: Placed, name: str, labels: Sequence[str], count: int | None) -> int:
    value = column(placed, name)
    if labels:
        return label_id(value, {label: i for i, label in enumerate(labels)}, len(labels), placed)
    most = 2**31 if count is None else count
    try:
        if not isinstance(value, LabelName) and 0 <= (number := int(value)) < most:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise SourceError(
        f"{placed[0]}: column '{name}' must be the number of a class, got {brief(value)}; they go "
        f"from 0 to {most - 1:,}. Name the model's classes, in their order, in the job: labels: "
        "[first, second, ...]."
    )
