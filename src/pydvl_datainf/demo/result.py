"""The demo's result: what it shows at the end, and how that is read from a finished run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from pydvl_datainf.demo.reviews import Reviews
from pydvl_datainf.demo.scoring import Scores
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.evaluation import mislabel_auc
from pydvl_datainf.results.reader import InfluenceRun


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All that is shown at the end.

    Attributes:
        settings: sizes, rates and seed.
        train: n training reviews with their given labels, some of them flipped.
        test: m test reviews with clean labels.
        accuracy: share of the test reviews that the tuned model labels rightly.
        n_parameters: how many parameters the blocks have together.
        damping: λ of each block, by the block's name.
        scores: of the training reviews.
        seconds: how long each stage took, in the order of the stages.
    """

    settings: DemoSettings
    train: Reviews
    test: Reviews
    accuracy: float
    n_parameters: int
    damping: Mapping[str, float]
    scores: Scores
    seconds: Mapping[str, float]

    @classmethod
    def from_run(cls, run: InfluenceRun) -> Self:
        """Reads a result.

        Args:
            run: of the demo.

        Returns:
            What it found.

        Raises:
            StoreError: if the run is not complete, or damaged.
        """
        run.check()
        told, train = run.metadata("run"), run.metadata("train")
        assert run.scores is not None  # the demo keeps all of them
        parts = {f"DataInf: {name}": seconds for name, seconds in run.attrs["seconds"].items()}
        return cls(
            settings=DemoSettings(**told["settings"]),
            train=Reviews.from_columns(train),
            test=Reviews.from_columns(run.metadata("test")),
            accuracy=told["accuracy"],
            n_parameters=run.plan.n_parameters,
            damping=run.damping,
            scores=Scores(
                influences=np.asarray(run.scores[...]),
                self_influences=run.self_influence(),
                hessian_free=train["hessian_free"],
                scaled_hessian_free=train["scaled_hessian_free"],
                losses=run.training_loss(),
            ),
            seconds=told["seconds"] | parts,
        )

    def aucs(self) -> dict[str, float]:
        """How well each score finds the flipped labels.

        Returns:
            Names of the scores and their AUC.
        """
        suspicions = self.scores.suspicions()
        return {name: mislabel_auc(s, self.train.flipped) for name, s in suspicions.items()}
