"""Film reviews with labels, some of them flipped on purpose."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pydvl_datainf.demo.errors import DemoSettingsError
from pydvl_datainf.demo.settings import DemoSettings

LABELS = ("rotten", "fresh")
"""What the labels 0 and 1 mean."""


@dataclass(frozen=True, slots=True)
class Reviews:
    """Reviews with the labels that the model is given.

    Attributes:
        texts: one line each, (n,).
        labels: the given labels, (n,), positions in LABELS.
        flipped: which of the given labels are wrong, (n,).
    """

    texts: npt.NDArray[np.object_]
    labels: npt.NDArray[np.int64]
    flipped: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, chosen: npt.NDArray[np.intp]) -> "Reviews":
        return Reviews(self.texts[chosen], self.labels[chosen], self.flipped[chosen])

    @classmethod
    def from_columns(cls, columns: Mapping[str, npt.NDArray[Any]]) -> "Reviews":
        """Reads reviews from columns like those that `to_columns` gives."""
        labels = (columns["label"] == LABELS[1]).astype(np.int64)
        return cls(columns["text"], labels, columns["flipped"])

    def to_columns(self) -> dict[str, npt.NDArray[Any]]:
        """Columns for people: text, label (in words) and flipped."""
        words = np.array(LABELS, dtype=object)[self.labels]
        return {"text": self.texts, "label": words, "flipped": self.flipped}


def read_reviews(path: Path) -> Reviews:
    """Reads the reviews that call a film fresh or rotten, without empty and repeated ones.

    Args:
        path: a CSV file with the columns category and text.

    Returns:
        All such reviews in the file's order, with their own labels.
    """
    table = pd.read_csv(path, usecols=["category", "text"])
    table = table[table["category"].isin(LABELS)].dropna()
    table["text"] = table["text"].str.strip()
    table = table[table["text"] != ""].drop_duplicates("text")
    labels = (table["category"] == LABELS[1]).to_numpy(dtype=np.int64)
    return Reviews(table["text"].to_numpy(dtype=object), labels, np.zeros(len(table), dtype=bool))


def flip_labels(reviews: Reviews, count: int, rng: np.random.Generator) -> Reviews:
    """Gives some reviews, drawn at random, the other label.

    Args:
        reviews: reviews with right labels.
        count: how many labels to flip, at most as many as there are reviews.
        rng: draws them.

    Returns:
        The same reviews, of which `count` are marked as flipped.
    """
    flipped = np.zeros(len(reviews), dtype=bool)
    flipped[rng.choice(len(reviews), size=count, replace=False)] = True
    return replace(
        reviews, labels=np.where(flipped, 1 - reviews.labels, reviews.labels), flipped=flipped
    )


def draw_reviews(reviews: Reviews, settings: DemoSettings) -> tuple[Reviews, Reviews]:
    """Draws training and test reviews at random, and flip some of the training labels.

    Args:
        reviews: reviews with right labels.
        settings: the two sizes, the share to flip, and the seed.

    Returns:
        Training reviews (n), short ones first so that batches in this order need little padding,
        and test reviews (m), in random order. They have none in common.

    Raises:
        DemoSettingsError: if more are asked for than there are.
    """
    wanted = settings.train + settings.test
    if wanted > len(reviews):
        raise DemoSettingsError(
            f"train + test must be at most {len(reviews)}, the number of reviews there are, but "
            f"{settings.train} + {settings.test} = {wanted}"
        )
    draw, flip = np.random.default_rng(settings.seed).spawn(2)
    order = draw.permutation(len(reviews))[:wanted]
    chosen, test = reviews[order[: settings.train]], reviews[order[settings.train :]]
    by_length = np.argsort([len(text) for text in chosen.texts], kind="stable")
    return flip_labels(chosen[by_length], settings.n_flipped, flip), test
