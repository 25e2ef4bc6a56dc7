"""Which samples a page holds, and what it says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from pydvl_datainf.evaluation import Indices
from pydvl_datainf.report.columns import Column, column_of, ids_of, length_limit, ordered
from pydvl_datainf.report.thumbnails import Thumbnails
from pydvl_datainf.results.reader import InfluenceRun

Side: TypeAlias = Literal["test", "train"]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a page holds of the samples of one side.

    Attributes:
        chosen: positions of the samples in the data, ascending.
        ids: of them.
        columns: of them.
        images: small copies, as a data: URL for each path, as shown, for which there is one.
    """

    chosen: Indices
    ids: Column
    columns: Sequence[Column]
    images: Mapping[str, str]

    def rows(self, positions: Indices) -> list[int]:
        """Where samples are among the chosen ones.

        Args:
            positions: in the data, of chosen samples.

        Returns:
            For each its number.
        """
        rows: list[int] = np.searchsorted(self.chosen, positions).tolist()
        return rows

    def to_json(self) -> dict[str, Any]:
        """The samples for the page."""
        columns = [column.to_json() for column in self.columns]
        return {"ids": self.ids.to_json(), "columns": columns, "images": dict(self.images)}

    @property
    def cut(self) -> int:
        """How many texts are cut."""
        return sum(len(column.cut) for column in (self.ids, *self.columns))


def samples_of(
    run: InfluenceRun,
    chosen: Mapping[Side, Indices],
    characters: int,
    thumbnails: Thumbnails,
) -> tuple[dict[Side, Samples], int]:
    """Reads ids and metadata.

    Args:
        run: complete.
        chosen: positions of the samples of each side, ascending.
        characters: of all texts together.
        thumbnails: makes small copies of images; those of the first side have precedence.

    Returns:
        The samples of each side, and the length at which their texts are cut.
    """
    told = {side: run.metadata(side) for side in chosen}
    ids = {"test": run.test_ids, "train": run.train_ids}
    texts = [
        values[positions]
        for side, positions in chosen.items()
        for values in (ids[side], *told[side].values())
    ]
    limit = length_limit(texts, characters)
    samples: dict[Side, Samples] = {}
    for side, positions in chosen.items():
        own = ids_of(ids[side], positions, limit)
        names = ordered(told[side])
        columns = [column_of(name, told[side][name], positions, limit) for name in names]
        paths = {
            shown: path
            for column in columns
            if column.kind == "image"
            for shown, path in zip(column.values, told[side][column.name][positions], strict=True)
        }
        urls = thumbnails.urls(paths.values(), image_folders(run, side, thumbnails.root))
        images = {shown: urls[path] for shown, path in paths.items() if path in urls}
        samples[side] = Samples(positions, own, columns, images)
    return samples, limit


def image_folders(run: InfluenceRun, side: Side, folder: Path) -> list[Path]:
    """From where the paths of images may be meant.

    Args:
        run: of `pydvl-datainf run`, where paths are meant from the file of the data, or another.
        side: whose images.
        folder: the caller's, for a job that of its file.

    Returns:
        Folders, to be tried in this order.
    """
    job = run.metadata("run").get("job")
    file = job.get(side) if isinstance(job, dict) else None
    return [folder] if not isinstance(file, str) else [folder / Path(file).parent, folder]
