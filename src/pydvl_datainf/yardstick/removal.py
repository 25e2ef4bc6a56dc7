"""Does a test sample get worse without the training samples that are said to help it?"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import Client

from pydvl_datainf.errors import PlanError
from pydvl_datainf.evaluation import Floats, Indices, Mask
from pydvl_datainf.yardstick.bank import Bank
from pydvl_datainf.yardstick.retraining import Train, retrain_on_all, retrain_without
from pydvl_datainf.yardstick.subsets import Scores


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """What became of some test samples' losses when training samples were removed.

    Errors are standard errors over these test samples.

    Attributes:
        k: training samples removed each time.
        tests: positions of the test samples, (q,).
        helpful: change of each one's loss without its k most helpful training samples, (q,).
        random: the same without k random ones, a mean over draws, (q,).
        predicted: change that the scores predict without the most helpful ones, (q,).
    """

    k: int
    tests: Indices = field(repr=False)
    helpful: Floats = field(repr=False)
    random: Floats = field(repr=False)
    predicted: Floats = field(repr=False)

    @property
    def mean(self) -> tuple[float, float]:
        """Mean change without the most helpful training samples, and its error."""
        return _mean_with_error(self.helpful)

    @property
    def beyond_random(self) -> tuple[float, float]:
        """The same less what removing random ones does, paired."""
        return _mean_with_error(self.helpful - self.random)


def validate_removal(
    run_or_scores: Any,
    train: Train,
    *,
    k: int = 20,
    tests: int = 20,
    draws: int = 5,
    seeds: int = 2,
    bank: Any,
    recipe: str = "",
    subset_seed: int = 0,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Removal:
    """Trains again without the k training samples said to help a test sample most.

    This takes (1 + draws + tests) · seeds retrainings; those that are in the bank are not made
    again, so that other methods share the random ones.

    Args:
        run_or_scores: as in `validate`.
        train: as in `validate`.
        k: training samples removed each time, fewer than n.
        tests: q, how many test samples, drawn at random; at least 2.
        draws: of k random training samples.
        seeds: trainings of each.
        bank: where losses are kept; that of `validate` serves.
        recipe: as in `validate`.
        subset_seed: as in `validate`; of these draws too.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: whether to show bars.

    Returns:
        Changes of loss against training on all samples, means over seeds.

    Raises:
        PlanError: if scores or numbers do not suit.
        StoreError: if the bank is of other data or another recipe, in use or read-only.
        ClusterError: if workers cannot be reached or were lost.
    """
    scores = Scores.of(run_or_scores)
    _check_numbers(scores, k, tests, draws)
    kept = Bank(
        bank, n=scores.n, m=scores.m, ids=scores.ids, recipe=recipe, subset_seed=subset_seed
    )
    rng = np.random.default_rng((subset_seed, k))
    chosen = np.sort(rng.permutation(scores.m)[:tests])
    random = [rng.permutation(scores.n)[:k] for _ in range(draws)]
    best = [scores.most_helpful(t, k) for t in chosen]
    places: dict[str, Any] = {"client": client, "n_jobs": n_jobs, "progress": progress}
    base = retrain_on_all(kept, train, seeds=seeds, **places).mean(axis=0)
    removed = _masks(scores.n, random + best)
    losses = retrain_without(kept, train, removed, seeds=seeds, **places)
    changes = losses.mean(axis=1) - base
    own = np.arange(len(chosen))
    return Removal(
        k=k,
        tests=chosen,
        helpful=changes[draws + own, chosen],
        random=changes[:draws, chosen].mean(axis=0),
        predicted=scores.predicted_changes(~removed[draws:])[chosen, own],
    )


def _check_numbers(scores: Scores, k: int, tests: int, draws: int) -> None:
    if not 1 <= k < scores.n:
        raise PlanError(f"k must be 1 to {scores.n - 1}, one less than there are, got {k}.")
    if not 2 <= tests <= scores.m:
        raise PlanError(f"tests must be 2 to {scores.m}, as many as there are, got {tests}.")
    if draws < 1:
        raise PlanError(f"draws must be a positive number, got {draws}.")


def _masks(n: int, positions: list[Indices]) -> Mask:
    masks = np.zeros((len(positions), n), dtype=bool)
    for mask, where in zip(masks, positions, strict=True):
        mask[where] = True
    return masks


def _mean_with_error(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
