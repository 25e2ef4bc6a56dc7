"""A seeded data set of preference pairs, some of them swapped."""

from dataclasses import dataclass, replace
from random import Random

from defects import KINDS


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with two answers.

    Attributes:
        prompt: what is asked.
        chosen: the better answer, or the worse one if the pair is swapped.
        rejected: the other answer.
        kind: of the defect, one of `KINDS`.
        swapped: whether the two answers were exchanged.
    """

    prompt: str
    chosen: str
    rejected: str
    kind: str
    swapped: bool = False


def draw_pairs(train: int, test: int, share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Draws data that depends on its arguments alone.

    Args:
        train: training pairs of each kind of defect.
        test: test pairs of each kind, of which none is swapped.
        share: of the training pairs of each kind that are swapped.
        seed: of the draw.

    Returns:
        Training and test pairs, the kinds of defect in turn. No prompt occurs twice in them.

    Raises:
        ValueError: if the share is not that of a whole number of pairs.
    """
    count = round(share * train)
    if not 0 <= count <= train or abs(count - share * train) > 1e-9:
        raise ValueError(f"a share of {share} of {train} pairs is not a number of pairs")
    random, seen = Random(f"preference {seed}"), set[str]()
    rounds = [[_new_pair(kind, random, seen) for kind in KINDS] for _ in range(train + test)]
    for kind in range(len(KINDS)):
        for i in random.sample(range(train), count):
            rounds[i][kind] = swap(rounds[i][kind])
    pairs = [pair for each in rounds for pair in each]
    return pairs[: train * len(KINDS)], pairs[train * len(KINDS) :]


def swap(pair: Pair) -> Pair:
    """The pair with its answers exchanged."""
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, swapped=not pair.swapped)


def _new_pair(kind: str, random: Random, seen: set[str]) -> Pair:
    while True:
        prompt, good, bad = KINDS[kind](random)
        if prompt not in seen:
            seen.add(prompt)
            return Pair(prompt, good, bad, kind)
