"""What the demo's scores are worth: retrainings beside them, kept, gone on with and replaced."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pydvl_datainf.demo import output, validation
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.report import file
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.yardstick import Bank
from pydvl_datainf.yardstick import retraining as yardstick
from small_demo import OTHER, SETTINGS, retrained

HALVES, SEEDS = 10, 2


class Validated:
    """Validates the small demo; keeps what was announced, and how often it was tuned."""

    def __init__(self, demo, monkeypatch):
        self.demo = demo
        self.lines = []
        self.calls = 0
        self.stop_at = np.inf
        self.shift = 0
        monkeypatch.setattr(validation.DemoRetraining, "of", lambda settings: self.train)
        monkeypatch.setattr(validation, "write_report", self.report)
        monkeypatch.setattr(yardstick, "MOST", HALVES)

    def train(self, indices, seed):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return retrained(indices, seed) + self.shift

    def report(self, store, path):
        path.write_text(f"{file.MARK} of {store.name} with retrainings")

    def __call__(self, minutes=1):
        return validation.validate_demo(
            SETTINGS, self.demo.out, minutes, announce=self.lines.append
        )


@pytest.fixture
def validated(demo, monkeypatch):
    demo()
    return Validated(demo, monkeypatch)


def test_the_numbers_and_the_report_are_those_of_retrainings_beside_the_scores(validated):
    found = validated()
    assert validated.calls == (1 + HALVES) * SEEDS
    bank = Bank.open(f"{validated.demo.store}.bank")
    members = bank.members(HALVES)
    losses = [
        np.mean([retrained(np.flatnonzero(half), seed) for seed in range(SEEDS)], axis=0)
        for half in members
    ]
    scores = np.asarray(InfluenceRun(validated.demo.store).scores[...], dtype=np.float64)
    each = [
        spearmanr(-(members @ row), of_test).statistic
        for row, of_test in zip(scores, np.transpose(losses), strict=True)
    ]
    assert found.validation.lds == pytest.approx(np.mean(each), abs=1e-9)
    given = InfluenceRun(validated.demo.store).metadata("test")["loss"]
    assert found.recipe.given.tolist() == given.tolist()
    assert (validated.demo.out / output.REPORT).read_text().endswith("with retrainings")
    assert [line.split(",")[0][:40] for line in validated.lines] == [
        "Tuning the model on all training data wi",
        "The recipe fits: test losses differ by 0",
    ]


@pytest.mark.parametrize("stop_at", [2, 9])
def test_what_was_stopped_goes_on(validated, stop_at):
    validated.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        validated()
    found = validated()
    assert validated.calls == (1 + HALVES) * SEEDS + 1
    assert found.validation.subsets == HALVES
    validated.demo()  # reads what is there beside its own
    assert validated.demo.tuned == 1


def test_models_of_another_kind_are_refused_before_halves_are_tuned_on(validated):
    validated.shift = 10
    with pytest.raises(OutputError, match="another than that of the result"):
        validated()
    assert validated.calls == 6
    assert not (validated.demo.out / f"{output.SCORES}.bank").exists()


def test_a_result_without_test_losses_is_refused(validated, monkeypatch):
    monkeypatch.setattr(InfluenceRun, "metadata", lambda run, side: {})
    with pytest.raises(OutputError, match="an earlier version of the demo"):
        validated()
    assert validated.calls == 0


def test_retrainings_go_with_the_result_that_is_replaced(validated):
    validated()
    assert list(validated.demo.out.glob(output.BANKS))
    validated.demo(OTHER, overwrite=True)
    assert not list(validated.demo.out.glob(output.BANKS))
