"""The demo from the first to the last stage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from pydvl_datainf.demo import output
from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.record import write_record
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.reviews import draw_reviews, read_reviews
from pydvl_datainf.demo.scoring import (
    Scores,
    compute_hessian_free,
    compute_losses,
    compute_predictions,
)
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import Batch, encode, tuned_model
from pydvl_datainf.influence import DataInfInfluence
from pydvl_datainf.objectives import SequenceClassification
from pydvl_datainf.plots import roc_curves, score_distribution


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
        self.announce(name)
        start = perf_counter()
        yield
        self.seconds[name] = perf_counter() - start


def run_demo(
    settings: DemoSettings,
    *,
    progress: bool = False,
    announce: Callable[[str], None] = lambda stage: None,
) -> DemoResult:
    """Tunes a model on reviews with flipped labels and scores each training review.

    Args:
        settings: sizes, rates and seed.
        progress: show bars on stderr.
        announce: told the name of each stage when it begins.

    Returns:
        What was found; nothing is written.
    """
    stages = Stages(announce)
    with stages.stage("Reading and tokenising the reviews"):
        folder = model_folder()
        train, test = draw_reviews(read_reviews(reviews_file()), settings)
        encoded = [encode(reviews, folder, settings.tokens) for reviews in (train, test)]
    with stages.stage("Tuning the model"):
        model = tuned_model(encoded[0], folder, settings, progress)
    with stages.stage("Predicting the test reviews"):
        predictions = compute_predictions(model, encoded[1].to_loader(settings.batch_size))
    influence = DataInfInfluence(
        model, SequenceClassification(), batch_size=settings.batch_size, progress=progress
    )
    loader, queries = encoded[0].to_loader(settings.batch_size), encoded[1].to_batch()
    scores = compute_scores(model, influence, loader, queries, stages, progress)
    return DemoResult(
        settings=settings,
        train=train,
        test=test,
        accuracy=float((predictions == test.labels).mean()),
        n_parameters=influence.n_parameters,
        damping=influence.damping,
        scores=scores,
        seconds=stages.seconds,
    )


def compute_scores(
    model: nn.Module,
    influence: DataInfInfluence,
    loader: DataLoader[Batch],
    queries: Batch,
    stages: Stages,
    progress: bool,
) -> Scores:
    """Computes all scores of the training reviews, one stage for each.

    Args:
        model: a tuned model in eval mode.
        influence: of that model, not fitted yet.
        loader: yields the n training reviews, in a fixed order.
        queries: the m test reviews.
        stages: takes the times.
        progress: show bars on stderr.

    Returns:
        The scores.
    """
    with stages.stage("DataInf: gradients of the training reviews and λ"):
        influence.fit(loader)
    with stages.stage("DataInf: influences on the test reviews"):
        influences = influence.training_influences(queries).numpy()
    with stages.stage("DataInf: self-influences"):
        self_influences = influence.self_influences().numpy()
    with stages.stage("Hessian-free: gradient products"):
        hessian_free = compute_hessian_free(influence, queries, loader, progress)
    with stages.stage("Training losses"):
        losses = compute_losses(model, loader)
    return Scores(influences, self_influences, hessian_free, losses)


def write_result(folder: Path, result: DemoResult) -> None:
    """Writes the scores and the two plots.

    Args:
        folder: an empty folder.
        result: what was found.
    """
    write_record(folder / output.SCORES, result)
    suspicions, flipped = result.scores.suspicions(), result.train.flipped
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    roc_curves(suspicions, flipped, figure.subplots())
    figure.suptitle(f"Finding {flipped.sum():,} flipped labels among {flipped.size:,}")
    figure.savefig(folder / output.ROC_PLOT, dpi=150)
    figure = Figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplots(len(suspicions))
    for (name, suspicion), panel in zip(suspicions.items(), panels, strict=True):
        score_distribution(suspicion, flipped, panel, name=name)
    for panel in panels[1:]:
        panel.get_legend().remove()
    figure.suptitle(
        "Scores as suspicions: further right, more like a wrong label\n"
        "(mean influences times −1; the outermost bins count all that lies beyond)"
    )
    figure.savefig(folder / output.DISTRIBUTION_PLOT, dpi=150)
