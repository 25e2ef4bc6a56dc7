"""DataInfValuation in pyDVL's hands, beside its own methods."""

import numpy as np
import pytest
from pydvl.reporting.point_removal import run_removal_experiment
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.methods import KNNShapleyValuation
from pydvl.valuation.methods.random import RandomValuation
from pydvl.valuation.scorers import SupervisedScorer
from pydvl.valuation.utility import ModelUtility
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from pydvl_datainf.valuation import DataInfValuation
from valued import build, oracle, samples


def split(random_state):
    x, y = samples(40, 9)
    return Dataset.from_arrays(x, y % 2, train_size=30, random_state=int(random_state))


def utility(test, random_state):
    scorer = SupervisedScorer("accuracy", test, default=0.0, range=(0, 1))
    return ModelUtility(LogisticRegression(), scorer)


class ByDataInf:
    """One influence model for all splits."""

    def __init__(self):
        self.influence = build()

    def __call__(self, train, random_state):
        return DataInfValuation(self.influence, samples(6, 10))


def by_neighbours(train, random_state):
    return KNNShapleyValuation(KNeighborsClassifier(3), train, progress=False)


def at_random(train, random_state):
    return RandomValuation(int(random_state))


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_removal_of_points(n_jobs):
    """Scores are those after removal in the order of the values, for every method and run."""
    shares = np.array([0.0, 0.3])
    tables = run_removal_experiment(
        split, [ByDataInf(), by_neighbours, at_random], utility, shares, 2, n_jobs, random_state=3
    )
    for table in tables:
        assert sorted(table.method_name) == sorted(
            2 * ["DataInfValuation", "KNNShapleyValuation", "RandomValuation"]
        )
        assert np.isfinite(table[list(shares)].to_numpy()).all()
    expected = removed_by_hand(shares[1], best=False, seeds=np.random.SeedSequence(3))
    found = tables[0][tables[0].method_name == "DataInfValuation"][shares[1]]
    np.testing.assert_allclose(sorted(found), sorted(expected))


def removed_by_hand(share, best, seeds):
    """Accuracies after removing the samples of the lowest oracle values."""
    accuracies = []
    for seed in seeds.generate_state(2):
        train, test = split(seed)
        values = oracle(train.data(), samples(6, 10)).mean(0)
        kept = np.argsort(values)[int(share * len(values)) :]
        model = LogisticRegression().fit(train.data().x[kept], train.data().y[kept])
        accuracies.append(model.score(*test.data()))
    return accuracies
