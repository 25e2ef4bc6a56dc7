"""When a valuation is fitted anew, and when it goes on from what pyDVL keeps of it."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.result import ValuationResult, load_result, save_result
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence
from pydvl_datainf.errors import BatchError
from pydvl_datainf.valuation import DataInfValuation
from small_runs import close
from valued import TEST, TRAIN, N, build, network, oracle, samples, tensors, values_of

# Fitted anew


def test_one_influence_model_serves_several_data_sets(scores):
    """Whatever it was fitted on, and with λ chosen for the data at hand."""
    other = samples(N, 6)
    shared = build().fit([tensors(samples(N, 7))])
    before = shared.damping
    valuation = DataInfValuation(shared, TEST)
    close(valuation.fit(Dataset(*TRAIN)).result.values, scores.mean(0))
    close(valuation.fit(Dataset(*other)).result.values, oracle(other, TEST).mean(0))
    close(values_of(influence=shared).values, scores.mean(0))
    assert (shared.damping, shared.n_samples) == (before, N)


def test_what_is_fitted_on_this_data_is_not_fitted_again(scores, monkeypatch):
    def refuse(self, data):
        raise AssertionError("fitted again")

    influence = build().fit([tensors(TRAIN)])
    monkeypatch.setattr(DataInfInfluence, "fit", refuse)
    close(values_of(influence=influence).values, scores.mean(0))
    with pytest.raises(AssertionError, match="fitted again"):  # the negative control
        values_of(train=(TRAIN[0], 3 - TRAIN[1]), influence=influence)


def test_stale_damping_would_be_seen(scores):
    """The negative control: with λ of other data, values differ."""
    stale = build().fit([tensors(samples(N, 7))]).unfitted()
    with pytest.raises(AssertionError):
        close(values_of(influence=stale).values, scores.mean(0), 1e-3)


def test_given_damping_stays():
    influence = build(regularization=0.3).fit([tensors(samples(N, 7))])
    close(values_of(influence=influence).values, oracle(TRAIN, TEST, damping=0.3).mean(0))


def test_a_model_that_went_on_training_is_valued_as_it_is_now():
    influence = build()
    valuation = DataInfValuation(influence, TEST)
    first = valuation.fit(Dataset(*TRAIN)).result
    with torch.no_grad():
        influence.model[0].weight += 0.1
    second = valuation.fit(Dataset(*TRAIN), first).result
    close(second.values, oracle(TRAIN, TEST, copy.deepcopy(influence.model)).mean(0))
    assert np.abs(second.values - first.values).max() > 1e-3 * np.abs(first.values).max()


def test_an_unfitted_influence_model_stays_unfitted():
    influence = build()
    values_of(influence=influence)
    assert not influence.is_fitted


class Watched:
    """A loss that counts how often two threads were in it at once."""

    def __init__(self):
        self.inside = self.overlaps = 0

    def __call__(self, outputs, y):
        self.inside += 1
        time.sleep(0.001)
        self.overlaps += self.inside > 1
        self.inside -= 1
        return F.cross_entropy(outputs, y)


def test_threads_take_turns_with_a_shared_model(scores):
    loss = Watched()
    influence = DataInfInfluence(network(), loss)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: values_of(influence=influence), range(4)))
    assert loss.overlaps == 0
    for result in results:
        close(result.values, scores.mean(0))


# Results that pyDVL keeps


def test_going_on_from_a_result_counts_nothing_twice(tmp_path):
    valuation, data = DataInfValuation(build(), TEST), Dataset(*TRAIN)
    first = valuation.fit(data).result
    save_result(first, tmp_path / "result.pkl")
    loaded = load_result(tmp_path / "result.pkl")
    assert loaded == first
    again = DataInfValuation(build(), TEST).fit(data, continue_from=loaded).result
    assert again == first


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (ValuationResult.zeros("DataInf", size=N - 1), "continue_from has 12 values.*13 samples"),
        (ValuationResult.zeros("knn_shapley", size=N), "'knn_shapley'.*'DataInf'"),
        (ValuationResult.zeros("DataInf", np.arange(1, N + 1)), "do not match"),
    ],
    ids=["length", "method", "indices"],
)
def test_a_result_of_other_samples_or_methods_is_not_gone_on_from(result, message):
    with pytest.raises(ValueError, match=message):
        DataInfValuation(build(), TEST).fit(Dataset(*TRAIN), continue_from=result)


def test_an_error_leaves_the_result():
    valuation = DataInfValuation(build(), TEST).fit(Dataset(*TRAIN))
    first = valuation.result
    with pytest.raises(BatchError, match=r"shape \(2,\), a test sample \(3,\)"):
        valuation.fit(Dataset(np.ones((4, 2)), np.zeros(4, int)))
    assert valuation.result is first
