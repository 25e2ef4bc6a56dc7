"""What the demo's scores are worth for predicting what tuning its model again would do."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pydvl_datainf.demo import output
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.reviews import draw_reviews, read_reviews
from pydvl_datainf.demo.scoring import compute_losses
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import EncodedReviews, encode, tuned_model
from pydvl_datainf.errors import JobError
from pydvl_datainf.evaluation import Floats
from pydvl_datainf.jobfile.validation import JobValidation, validate_recipe
from pydvl_datainf.report import write_report
from pydvl_datainf.results.reader import InfluenceRun


@dataclass(frozen=True, slots=True)
class DemoRetraining:
    """Tunes the demo's model again on a part of its reviews.

    Attributes:
        settings: of the demo.
        folder: of the model before it was tuned.
        train: n reviews.
        test: m reviews.
    """

    settings: DemoSettings
    folder: Path
    train: EncodedReviews
    test: EncodedReviews

    @classmethod
    def of(cls, settings: DemoSettings) -> "DemoRetraining":
        """Reads and tokenises the reviews of the demo."""
        folder = model_folder()
        sides = draw_reviews(read_reviews(reviews_file()), settings)
        train, test = (encode(reviews, folder, settings.tokens) for reviews in sides)
        return cls(settings, folder, train, test)

    def __call__(self, indices: npt.NDArray[np.intp], seed: int) -> Floats:
        """Tunes the model again.

        Args:
            indices: positions of training reviews.
            seed: 0 is the one after that of the demo, so that none is the demo's own.

        Returns:
            Losses of the test reviews, (m,).
        """
        settings = replace(self.settings, seed=self.settings.seed + 1 + seed)
        chosen = self.train.chosen(indices)
        model = tuned_model(chosen, self.folder, settings, progress=False)
        return compute_losses(model, self.test.to_loader(settings.batch_size))


def validate_demo(
    settings: DemoSettings,
    out: Path,
    minutes: float,
    *,
    n_jobs: int | None = None,
    progress: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> JobValidation:
    """Measures what the scores are worth, and makes the report anew, which then says so.

    Args:
        settings: of the complete result in `out`.
        out: folder of the results; what was tuned is kept there, and used again.
        minutes: what the tunings on halves may take, about.
        n_jobs: processes that tune at the same time, as in `validate`.
        progress: show bars on stderr.
        announce: told what happens, line by line.

    Returns:
        What came out.

    Raises:
        OutputError: if the result is not of the model that is tuned now.
    """
    store = out / output.SCORES
    run = InfluenceRun(store)
    given = run.metadata("test").get("loss")
    if given is None:
        raise OutputError(
            f"{out} was made by an earlier version of the demo, which did not keep the losses of "
            "the test reviews. Delete it, or choose another folder for the results."
        )
    try:
        found = validate_recipe(
            run,
            DemoRetraining.of(settings),
            lambda: given,
            f"{store}.bank",
            announce,
            method="DataInf",
            recipe=json.dumps(output.origin(settings)),
            minutes=minutes,
            n_jobs=n_jobs,
            progress=progress,
        )
    except JobError as error:
        raise OutputError(
            f"The model that is tuned now is another than that of the result in {out}, which may be"
            " of other versions of the packages. Choose another folder for the results, so that "
            f"all is computed anew. {error}"
        ) from error
    write_report(store, out / output.REPORT)
    return found
