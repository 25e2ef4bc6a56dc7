"""Seeded data sets of prompts and answers in ten classes each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import maths
import sentences

Draw = Callable[[str, Random], tuple[str, str]]

TASKS: dict[str, tuple[tuple[str, ...], Draw]] = {
    "sentences": (tuple(sentences.INSTRUCTIONS), sentences.draw),
    "maths": (tuple(maths.KINDS), partial(maths.draw, reasoning=False)),
    "maths-reasoning": (tuple(maths.KINDS), partial(maths.draw, reasoning=True)),
}
"""For each task the names of its classes, and what draws a prompt and an answer of one of them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, the answer that is learnt, and the class."""

    prompt: str
    answer: str
    label: str


def draw_samples(
    task: str, classes: int, train: int, test: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Draws data that depends on its arguments alone.

    Args:
        task: one of `TASKS`.
        classes: the first so many classes of the task take part.
        train: training samples of each class.
        test: test samples of each class.
        seed: of the draw.

    Returns:
        Training and test samples, the classes in turn. No prompt occurs twice in them.

    Raises:
        ValueError: if the task has not as many classes.
    """
    labels, draw = TASKS[task]
    if not 2 <= classes <= len(labels):
        raise ValueError(f"{task} has {len(labels)} classes and needs 2 of them, not {classes}")
    random, seen = Random(f"{task} {seed}"), set[str]()
    rounds = [
        [_new_sample(label, draw, random, seen) for label in labels[:classes]]
        for _ in range(train + test)
    ]
    samples = [sample for samples in rounds for sample in samples]
    return samples[: train * classes], samples[train * classes :]


def _new_sample(label: str, draw: Draw, random: Random, seen: set[str]) -> Sample:
    while True:
        prompt, answer = draw(label, random)
        if prompt not in seen:
            seen.add(prompt)
            return Sample(prompt, answer, label)
