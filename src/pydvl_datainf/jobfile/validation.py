"""What the scores of a job's run are worth for predicting what tuning its model again would do."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import isnan
from pathlib import Path
from typing import Any

from rich.table import Table

from pydvl_datainf.errors import JobError
from pydvl_datainf.evaluation import Floats
from pydvl_datainf.huggingface.folders import read_settings
from pydvl_datainf.jobfile.paths import model_in
from pydvl_datainf.jobfile.recipe import FACTOR, RecipeCheck, check_recipe
from pydvl_datainf.jobfile.retraining import Retraining
from pydvl_datainf.results.beside import losses_said
from pydvl_datainf.results.metadata import columns_of, digest
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.yardstick import (
    Bank,
    Comparison,
    Scores,
    Train,
    Validation,
    retrain_on_all,
    validate,
)
from pydvl_datainf.yardstick.bank import FULL, attributes_in


@dataclass(frozen=True, slots=True)
class JobValidation:
    """What came out.

    Args:
        method: of the run.
        validation: of its scores.
        recipe: the comparison of the job's model with others that were tuned on all data.
        bank: where losses are kept.
    """

    method: str
    validation: Validation
    recipe: RecipeCheck
    bank: str

    def __rich__(self) -> Table:
        return Comparison({self.method: self.validation}, self.method).__rich__()

    @property
    def meaning(self) -> str:
        """The numbers in words."""
        one = self.validation
        if not one.lds > 2 * one.error:
            return (
                "No relation between the scores and the losses after retraining can be told from "
                "chance. More subsets make the error smaller."
            )
        most = "" if isnan(one.ceiling) else f", of at most {one.ceiling:.2f} with this much noise"
        size = "" if isnan(one.slope) else f"; changes are {one.slope:.2g} times those predicted"
        return (
            "Over random halves of the training data, losses after retraining rank as the scores "
            f"predict with a correlation of {one.lds:.2f}{most}{size}."
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers; what is undefined is None."""
        one = self.validation
        numbers = {
            name: getattr(one, name) for name in ("lds", "error", "ceiling", "slope", "slope_error")
        }
        return {
            "method": self.method,
            **{name: None if isnan(value) else value for name, value in numbers.items()},
            "subsets": one.subsets,
            "seeds": one.seeds,
            "test_samples": one.actual.shape[0],
            "constant_losses": one.constant_losses,
            "constant_scores": one.constant_scores,
            "recipe": {
                "distance": self.recipe.distance,
                "between_seeds": self.recipe.between_seeds,
                "distance_of_means": self.recipe.distance_of_means,
                "means_between_seeds": self.recipe.means_between_seeds,
                "seeds": len(self.recipe.retrained),
            },
            "bank": self.bank,
            "meaning": self.meaning,
        }


def validate_job(
    run: InfluenceRun,
    again: Retraining,
    bank: str,
    announce: Callable[[str], None],
    *,
    subsets: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    progress: bool = True,
) -> JobValidation:
    """Checks that `training` is the recipe of the job's model, and then what scores are worth.

    What was tuned is kept in the bank, so that the same call goes on where it was stopped.

    Args:
        run: of the job, complete.
        again: tunes the job's model.
        bank: where losses are kept; those after tuning on all data beside it.
        announce: is told what is done next.
        subsets: halves of the training data, or as many as `minutes` allow.
        seeds: trainings of each half.
        minutes: what the trainings on halves may take, about.
        progress: show bars.

    Returns:
        What came out.
    """
    check_same_data(run, again)
    job = again.job
    return validate_recipe(
        run,
        again,
        again.of_tuned,
        bank,
        announce,
        method=job.method,
        recipe=recipe_of(again),
        subsets=subsets,
        seeds=seeds,
        minutes=minutes,
        client=job.scheduler,
        n_jobs=job.jobs,
        progress=progress,
    )


def validate_recipe(
    run: InfluenceRun,
    train: Train,
    given: Callable[[], Floats],
    bank: str,
    announce: Callable[[str], None],
    *,
    method: str,
    recipe: str,
    subsets: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    client: str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> JobValidation:
    """Checks that a function makes models like the one that was scored, then validates by it.

    Args:
        run: complete.
        train: tunes the model again.
        given: computes the test losses (m,) of the model that was scored.
        bank: where losses are kept; those after tuning on all data beside it.
        announce: is told what is done next.
        method: of the run.
        recipe: all that decides what comes out of tuning, as JSON.
        subsets: as in `validate`.
        seeds: as in `validate`.
        minutes: as in `validate`.
        client: as in `validate`.
        n_jobs: as in `validate`.
        progress: show bars.

    Returns:
        What came out.
    """
    scores = Scores.of(run)
    where: Any = {"client": client, "n_jobs": n_jobs, "progress": progress}
    known: Any = {"n": scores.n, "m": scores.m, "ids": scores.ids, "recipe": recipe}
    Bank(bank, **known)  # refuses another recipe before anything is tuned
    # Apart, so that a recipe which is not the right one leaves nothing in the bank.
    name = blake2b(recipe.encode(), digest_size=4).hexdigest()
    kept = Bank(f"{bank.rstrip('/')}.recipe-{name}", **known)

    def retrained(count: int) -> Floats:
        told = f"the model on all training data with {count} seeds, to check the recipe."
        cells = {(0, seed) for seed in range(count)}
        is_there = attributes_in(kept.store) is not None and cells <= kept.done(FULL)
        announce(f"Taking what is in the bank: {told}" if is_there else f"Tuning {told}")
        return retrain_on_all(kept, train, seeds=count, **where)

    found = check_recipe(given(), retrained)
    announce(
        f"The recipe fits: test losses differ by {found.distance:.3g} on average from those of the "
        f"given model, and by {found.between_seeds:.3g} between two seeds. Up to {FACTOR:g} times "
        "as much as that passes, so that other recipes may fit too."
    )
    validation = validate(
        run, train, subsets=subsets, seeds=seeds, minutes=minutes, bank=bank, recipe=recipe, **where
    )
    return JobValidation(method, validation, found, bank)


def check_same_data(run: InfluenceRun, again: Retraining) -> None:
    """Checks that the data is still what it was when the run was made.

    Args:
        run: of the job.
        again: has read the data anew.

    Raises:
        JobError: if it is not.
    """
    settings, sides = again.prepared.settings, again.prepared.sides
    lengths = {name: len(side.samples) for name, side in sides.items()}
    now = digest(columns_of(settings["ids"], settings["metadata"], lengths))
    if now != run.attrs["fingerprint"]["ids and metadata"]:
        raise JobError(
            f"The training or test data is not what the run in {run.store} was made of. Put it "
            "back, or make the run again with overwrite=True."
        )


def checksums(folder: Path) -> dict[str, int]:
    """A CRC-32 of each file of a model's folder: weights, tokenizer and settings, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            found[path.name] = 0
            with path.open("rb") as file:
                while part := file.read(2**24):
                    found[path.name] = zlib.crc32(part, found[path.name])
    return found


def recipe_of(again: Retraining) -> str:
    """All that decides what comes out of tuning, as JSON; of data and base model checksums."""
    told = again.job.as_told()
    adapter = again.job.adapter
    folder = None if adapter is None else Path(model_in(again.folder, adapter))
    config = folder / "adapter_config.json" if folder is not None else None
    base = Path(model_in(again.folder, again.training.base or again.job.model))
    columns = {name: side.columns for name, side in again.prepared.sides.items()}
    lengths = {name: len(side.samples) for name, side in again.prepared.sides.items()}
    recipe = {
        "training": again.training.model_dump(mode="json", exclude_none=True),
        "job": losses_said(told),
        "base": checksums(base) if base.is_dir() else str(base),
        "adapter": read_settings(config) if config is not None and config.exists() else None,
        "data": digest(columns_of(None, columns, lengths)),
    }
    return json.dumps(recipe, sort_keys=True)
