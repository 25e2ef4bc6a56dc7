"""All that comes before the influences: reviews, a tuned model, and what both tell."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from pydvl_datainf.demo.output import origin
from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.reviews import draw_reviews, read_reviews
from pydvl_datainf.demo.scoring import compute_losses, compute_predictions, compute_products
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import LORA_TARGETS, Batch, encode, tuned_model
from pydvl_datainf.influence import DataInfInfluence, HessianFreeInfluence
from pydvl_datainf.objectives import SequenceClassification
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner.run import run_influences


@dataclass(frozen=True, slots=True)
class Stages:
    """Announces the stages of a run and takes their times.

    Attributes:
        announce: told the name of each stage when it begins.
        seconds: how long each stage took.
    """

    announce: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside.

        Args:
            name: of the stage.
        """
        self.announce(f"{name} …")
        start = perf_counter()
        yield
        self.seconds[name] = perf_counter() - start


@dataclass(frozen=True, slots=True)
class Prepared:
    """What influences are computed of, and what is stored beside them.

    Attributes:
        influence: of the tuned model.
        train: yields the n training reviews, in a fixed order.
        test: yields the m test reviews.
        columns: for each side columns of its reviews.
        told: of the run.
    """

    influence: DataInfInfluence
    train: DataLoader[Batch]
    test: DataLoader[Batch]
    columns: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    told: Mapping[str, Any]

    def run(
        self, store: Path, seconds: Mapping[str, float], overwrite: bool, progress: bool
    ) -> InfluenceRun:
        """Computes the influences, or what is missing of them.

        Args:
            store: where to.
            seconds: how long each stage before took; in a run that goes on, when it was begun.
            overwrite: replace another run.
            progress: show bars on stderr.

        Returns:
            The complete run.
        """
        told = {**self.told, "seconds": dict(seconds)}
        return run_influences(
            self.influence,
            self.test,
            self.train,
            store,
            metadata={**self.columns, "run": told},
            self_influence=True,
            exact_sample="auto",
            overwrite=overwrite,
            progress=progress,
        )


def prepare(settings: DemoSettings, stages: Stages, progress: bool) -> Prepared:
    """Tunes a model, and computes the scores that need no influences.

    Args:
        settings: sizes, rates and seed.
        stages: takes the times.
        progress: show bars on stderr.

    Returns:
        All that the influences need.
    """
    with stages.stage("Reading and tokenising the reviews"):
        folder = model_folder()
        train, test = draw_reviews(read_reviews(reviews_file()), settings)
        encoded = [encode(reviews, folder, settings.tokens) for reviews in (train, test)]
    with stages.stage("Tuning the model"):
        model = tuned_model(encoded[0], folder, settings, progress)
    objective, size = SequenceClassification(), settings.batch_size
    influence = DataInfInfluence(model, objective, batch_size=size, progress=progress)
    plain = HessianFreeInfluence(model, objective, batch_size=size, progress=progress, scaled=True)
    loader, queries = (side.to_loader(settings.batch_size) for side in encoded)
    with stages.stage("Predicting the test reviews"):
        accuracy = np.mean(compute_predictions(model, queries) == test.labels)
        losses = compute_losses(model, queries)
    with stages.stage("Hessian-free: gradient products"):
        products = compute_products(plain, encoded[1].to_batch(), loader)
    told = {
        **origin(settings),
        "lora": list(LORA_TARGETS),
        "accuracy": float(accuracy),
        "n_parameters": influence.n_parameters,
        "versions": {package: version(package) for package in ("peft", "transformers")},
    }
    columns = {
        "train": train.to_columns() | products,
        "test": test.to_columns() | {"loss": losses},
    }
    return Prepared(influence, loader, queries, columns, told)
