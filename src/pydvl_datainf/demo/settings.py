"""The demo's sizes, rates and seed."""

import math
from dataclasses import dataclass

from pydvl_datainf.demo.errors import DemoSettingsError

MAX_TOKENS = 512
"""The longest input of the model: it has a position embedding for each place up to here."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sizes, rates and seed of one run; two runs with equal settings on one machine agree.

    Attributes:
        train: number of training reviews n; each gets a score.
        test: number of held-out reviews m with clean labels, on which influence is measured.
        epochs: passes over the training reviews during tuning.
        flip: share of the training labels that are flipped, between 0 and 1/2; n times this is
            rounded.
        rank: rank of each LoRA adapter.
        tokens: length at which tokenised reviews are cut.
        batch_size: reviews in a batch, in tuning and wherever gradients are computed.
        learning_rate: constant rate of AdamW, for the adapters and the classifier head.
        seed: decides which reviews are taken and which labels flipped, the order of the batches,
            the dropout, and the initial adapters and head.

    Raises:
        DemoSettingsError: if a number is out of its range, or no label would be flipped.
    """

    train: int = 2000
    test: int = 500
    epochs: int = 3
    flip: float = 0.2
    rank: int = 4
    tokens: int = 48
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "test", "epochs", "rank", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("tokens", 3 <= self.tokens <= MAX_TOKENS, f"from 3 to {MAX_TOKENS}")
        self._check("flip", 0 < self.flip < 0.5, "between 0 and 1/2")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "positive and finite")
        self._check("seed", self.seed >= 0, "at least 0")
        if self.n_flipped == 0:
            raise DemoSettingsError(
                f"flip={self.flip} of train={self.train} reviews flips no label at all, so there "
                f"is nothing to find; raise one of them"
            )

    @property
    def n_flipped(self) -> int:
        """How many training labels are flipped."""
        return round(self.flip * self.train)

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise DemoSettingsError(f"{name} must be {expected}, but is {getattr(self, name)}")
