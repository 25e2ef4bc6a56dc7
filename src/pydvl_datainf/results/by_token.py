"""Answers that were asked token by token: what of each influence is whose."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pydvl_datainf.errors import StoreError
from pydvl_datainf.evaluation import Floats, Indices
from pydvl_datainf.results.reader import InfluenceRun

BY_TOKEN = "answers by token"
"""What such a run is told: how losses of tokens make an answer's, "sum", "mean" or "other"."""


@dataclass(frozen=True, slots=True)
class AnswerByToken:
    """An answer, and the training samples with the most influence on it.

    Attributes:
        id: of the question.
        prompt: what was asked.
        answer: to it.
        tokens: those that count, (T,).
        positions: of the training samples at both ends, the most helpful first, (s,).
        parts: of their influences on the answer those of each token, (T, s).
        losses: how losses of tokens make that of the answer. Of a mean over T tokens the part of
            a token is 1/T of its influence; of others its influence.
    """

    id: str
    prompt: str
    answer: str
    tokens: list[str]
    positions: Indices
    parts: Floats
    losses: str

    @property
    def influences(self) -> Floats:
        """Of the samples on the answer, (s,): the sum over its tokens."""
        total: Floats = self.parts.sum(0)
        return total

    @property
    def meaning(self) -> str:
        """What the numbers of tokens are."""
        if self.losses == "sum":
            return (
                "The loss of the answer is the sum over its tokens: the numbers of a sample add up "
                "to its influence on the answer."
            )
        if self.losses == "mean":
            return (
                f"The loss of the answer is the mean over its {len(self.tokens)} tokens: each "
                "number is that part of the influence on the token, so that those of a sample add "
                "up to its influence on the answer."
            )
        return (
            "Each number is the influence on the token by itself. The objective does not tell how "
            "losses of tokens make that of the answer; sums are of these numbers alone."
        )


def answers_by_token(run: InfluenceRun, k: int) -> Iterator[AnswerByToken]:
    """Reads the answers of a run that was asked token by token.

    Args:
        run: complete, made by `ask` with by_token=True.
        k: training samples at either end, at most.

    Yields:
        An answer for each question, in their order.

    Raises:
        StoreError: if the run is another one.
    """
    run.check_complete()
    losses, told = run.metadata("run").get(BY_TOKEN), run.metadata("test")
    if losses is None or not {"prompt", "answer", "counted"} <= told.keys():
        raise StoreError(f"{run.store} holds no answers by token. Ask with by_token=True.")
    names = [str(name).rpartition(".")[0] for name in run.test_ids.tolist()]
    for name, group in groupby(range(len(names)), names.__getitem__):
        rows = list(group)
        where = slice(rows[0], rows[-1] + 1)
        scale = len(rows) if losses == "mean" else 1
        total = np.concatenate([_read(run, where, tile).sum(0) for tile in run.plan.train])
        order = np.argsort(-total, kind="stable")
        positions = order if len(order) <= 2 * k else np.concatenate([order[:k], order[-k:]])
        yield AnswerByToken(
            id=name,
            prompt=str(told["prompt"][rows[0]]),
            answer=str(told["answer"][rows[0]]),
            tokens=told["counted"][where].tolist(),
            positions=positions,
            parts=_chosen(run, where, positions) / scale,
            losses=losses,
        )


def _read(run: InfluenceRun, rows: slice, tile: slice) -> Floats:
    values: Floats = run.store.read("scores", (rows, tile)).astype(np.float64)
    return values


def _chosen(run: InfluenceRun, rows: slice, positions: Indices) -> Floats:
    """Influences of some training samples, read tile by tile: all together may be gigabytes."""
    found: Floats = np.empty((rows.stop - rows.start, len(positions)))
    for tile in run.plan.train:
        inside = (positions >= tile.start) & (positions < tile.stop)
        if inside.any():
            found[:, inside] = _read(run, rows, tile)[:, positions[inside] - tile.start]
    return found
