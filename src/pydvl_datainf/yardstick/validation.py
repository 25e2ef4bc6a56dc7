"""The calls: what scores are worth, and how methods compare, on the same retrainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client
from rich.table import Table

from pydvl_datainf.errors import PlanError, StoreError
from pydvl_datainf.results.beside import bank_beside
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.yardstick.bank import HALVES, Bank, complete_subsets, seeds_of_first
from pydvl_datainf.yardstick.retraining import FEWEST, Train, retrain_on_halves
from pydvl_datainf.yardstick.statistics import Validation, difference, measure
from pydvl_datainf.yardstick.subsets import Scores, checked_count
from pydvl_datainf.yardstick.table import validation_table


def validate(
    run_or_scores: Any,
    train: Train,
    *,
    subsets: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    bank: Any = None,
    recipe: str = "",
    subset_seed: int = 0,
    checkpoints: int | None = None,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Validation:
    """Measures what scores are worth for predicting what retraining would do.

    Models are trained again on random halves of the training data, and the losses kept in a bank,
    where the next method, λ or run over the same data finds them. A call that was stopped goes on
    when it is made again.

    Args:
        run_or_scores: a complete run without `top_k`, or an array (m, n), positive = helpful.
        train: `train(indices, seed)` trains on these of the n samples (ascending positions) and
            returns the loss of each of the m test samples, (m,), in the order of the scores; of a
            run with `query_groups` the mean loss of each group, in that of its `test_ids`. It must
            be picklable where other processes work, and give the same for the same arguments.
        subsets: M, how many halves, at least 10; None = as many as `minutes` allow, or 50.
        seeds: trainings of each half; two or more also give the ceiling.
        minutes: what this may take about, as measured by the first retrainings, in place of
            `subsets`; at most 1,000 halves are trained on.
        bank: where losses are kept: a path, a URL or a Zarr store; None = beside the store of a
            run, with `.bank` after its name. Scores alone need a place.
        recipe: how `train` trains, as text: in words, or JSON. Another recipe is refused in this
            bank. Data with the same ids is told apart by nothing else.
        subset_seed: of the draws of halves.
        checkpoints: K, where scores are sums over K checkpoints: sizes are divided by it. None =
            1, or the sum of the weights of a run that `sum_runs` made.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: tell beforehand how long it takes and what difference it can see; show a bar.

    Returns:
        The linear datamodelling score with its error and ceiling, and the size of changes.

    Raises:
        PlanError: if scores or numbers do not suit.
        StoreError: if the bank is of other data or another recipe, in use or read-only.
        StoreExistsError: if there is something else at its place.
        ObjectiveError: if `train` does not return m numbers.
        ModelError: if a loss is not finite.
        ClusterError: if workers cannot be reached or were lost.
    """
    seeds = checked_count(seeds, "seeds")
    divisor = None if checkpoints is None else checked_count(checkpoints, "checkpoints")
    scores = Scores.of(run_or_scores)
    kept = Bank(
        _place(run_or_scores) if bank is None else bank,
        n=scores.n,
        m=scores.m,
        ids=scores.ids,
        recipe=recipe,
        subset_seed=subset_seed,
    )
    count = retrain_on_halves(
        kept,
        train,
        scores.predicted_changes,
        subsets=subsets,
        seeds=seeds,
        minutes=minutes,
        client=client,
        n_jobs=n_jobs,
        progress=progress,
    )
    changes = scores.predicted_changes(kept.members(count)) / (divisor or scores.checkpoints)
    return measure(changes, kept.losses(count, seeds))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods on the same retrainings. `rich.print` shows it as a table.

    Attributes:
        validations: of each method, by name.
        against: the method that the others are compared with.
    """

    validations: Mapping[str, Validation]
    against: str

    @property
    def differences(self) -> dict[str, tuple[float, float]]:
        """Score minus that of `against`, and its standard error, by name; both by the same draws.

        Returns:
            Of the others alone.
        """
        base = self.validations[self.against]
        others = {name: v for name, v in self.validations.items() if name != self.against}
        return {name: difference(validation, base) for name, validation in others.items()}

    def __rich__(self) -> Table:
        return validation_table(self.validations, self.against, self.differences)


def compare(
    methods: Mapping[str, Any],
    bank: Any,
    *,
    against: str | None = None,
    subsets: int | None = None,
    seeds: int | None = None,
    checkpoints: Mapping[str, int] | None = None,
) -> Comparison:
    """Compares methods on the retrainings of a bank; nothing is trained.

    Args:
        methods: for each name a complete run, or an array (m, n), positive = helpful. The ids of
            runs are compared with those of the bank; arrays have none.
        bank: where `validate` kept losses.
        against: the method that the others are compared with; None = the first.
        subsets: the first so many; None = all that are complete.
        seeds: None = all that the bank began with.
        checkpoints: K of each method whose scores are sums over K checkpoints; of runs that
            `sum_runs` made it is known.

    Returns:
        The methods, with paired differences.

    Raises:
        PlanError: if scores do not suit, or a name is unknown.
        StoreError: if the bank lacks retrainings, or is of other data.
    """
    _check_names(methods, against, checkpoints or {})
    kept = Bank.open(bank)
    scores = {name: Scores.of(given) for name, given in methods.items()}
    for name, given in scores.items():
        _check_data(name, given, kept)
    done = kept.done(HALVES)
    seeds = seeds_of_first(done) or 1 if seeds is None else seeds
    complete = complete_subsets(done, seeds)
    if complete < max(FEWEST, subsets or 0):
        raise StoreError(
            f"{kept.store} has {complete} subsets with {seeds} seeds; {max(FEWEST, subsets or 0)} "
            "are needed. Call validate, which makes them."
        )
    M = complete if subsets is None else subsets
    members, losses = kept.members(M), kept.losses(M, seeds)
    told = checkpoints or {}
    divisors = {name: told.get(name, given.checkpoints) for name, given in scores.items()}
    validations = {
        name: measure(given.predicted_changes(members) / divisors[name], losses)
        for name, given in scores.items()
    }
    return Comparison(validations, next(iter(methods)) if against is None else against)


def _check_names(
    methods: Mapping[str, Any], against: str | None, checkpoints: Mapping[str, int]
) -> None:
    if not methods:
        raise PlanError("There are no methods to compare. Pass runs or arrays by name.")
    named = {*checkpoints, *([] if against is None else [against])}
    if named - methods.keys():
        unknown = sorted(named - methods.keys())
        raise PlanError(f"There are no scores named {unknown}; there are {sorted(methods)}.")
    for count in checkpoints.values():
        checked_count(count, "checkpoints")


def _check_data(name: str, scores: Scores, bank: Bank) -> None:
    if (scores.m, scores.n) != (bank.m, bank.n):
        raise PlanError(
            f"The scores {name!r} are of {scores.m} test and {scores.n} training samples; {bank} "
            "is of other data."
        )
    if isinstance(scores.given, InfluenceRun) and scores.ids != bank.fingerprint["ids"]:
        raise PlanError(f"The run {name!r} has other ids than {bank}, or in another order.")


def _place(run_or_scores: Any) -> str:
    place = bank_beside(run_or_scores) if isinstance(run_or_scores, InfluenceRun) else None
    if place is None:
        raise PlanError("Say where to keep the losses: bank=..., such as a path.")
    return place
