"""DataInfValuation against the mean of the dense oracle's influences, and in pyDVL's hands."""

import copy
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from distributed import Client
from pydvl.reporting.point_removal import run_removal_experiment
from pydvl.utils.status import Status
from pydvl.valuation.dataset import Dataset, GroupedDataset
from pydvl.valuation.methods import KNNShapleyValuation
from pydvl.valuation.methods.random import RandomValuation
from pydvl.valuation.result import ValuationResult, load_result, save_result
from pydvl.valuation.scorers import SupervisedScorer
from pydvl.valuation.utility import ModelUtility
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import DataInfInfluence, InfluenceRun, StoreError, run_influences
from pydvl_datainf.errors import (
    BatchError,
    ModelError,
    PlanError,
    SourceError,
    StoreExistsError,
)
from pydvl_datainf.influence import ExactInfluence, HessianFreeInfluence
from pydvl_datainf.valuation import DataInfValuation, to_valuation_result

N, M = 13, 5
GROUPS = np.array([2, 0, 1, 2, 0, 2, 1, 1, 0, 2, 2, 0, 1])
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(length, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(length, 3)), rng.integers(0, 4, length)


def build(**settings):
    return DataInfInfluence(network(), F.cross_entropy, **settings)


def oracle_rows(model, loss, blocks, data):
    """Rows of each block, by the oracle."""
    pair = tuple(torch.as_tensor(side) for side in data)
    return {block: dense.gradients(model, loss, pair, names) for block, names in blocks.items()}


def oracle(train, test, model=None, damping=None):
    """Influences (m, n) by the dense formula."""
    rows = partial(oracle_rows, model or network(), F.cross_entropy, BLOCKS)
    test, train = rows(test), rows(train)
    given = {b: damping or dense.automatic_damping(g) for b, g in train.items()}
    return dense.influences(test, train, train, given).numpy()


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)


TRAIN, TEST = samples(N, 1), samples(M, 2)


@pytest.fixture(scope="module")
def scores():
    return oracle(TRAIN, TEST)


def grouped(**settings):
    return GroupedDataset(*TRAIN, data_groups=GROUPS, **settings)


def group_scores(scores):
    """Influences of the groups 0, 1, 2, by explicit sums."""
    return np.stack([scores[:, g == GROUPS].sum(1) for g in range(3)], 1)


def values_of(train=TRAIN, test=TEST, influence=None, **settings):
    return DataInfValuation(influence or build(), test, **settings).fit(Dataset(*train)).result


# Values


def test_the_result_tells_means_and_their_spread_over_test_samples(scores):
    names = [f"sample {i}" for i in range(N)]
    valuation = DataInfValuation(build(), Dataset(*TEST))
    assert not valuation.is_fitted
    result = valuation.fit(Dataset(*TRAIN, data_names=names)).result
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))
    close(result.stderr, scores.std(0, ddof=1) / np.sqrt(M))
    np.testing.assert_array_equal(result.counts, [M] * N)
    np.testing.assert_array_equal(result.indices, np.arange(N))
    assert result.names.tolist() == names
    assert (result.algorithm, result.status) == ("DataInf", Status.Converged)
    assert result.algorithm == str(valuation)


def test_a_wrong_mean_or_variance_would_be_seen(scores):
    """The negative control of the comparison above."""
    result = values_of()
    with pytest.raises(AssertionError):
        close(result.values, scores.sum(0) / (M - 1))
    with pytest.raises(AssertionError):
        close(result.values, oracle(samples(N, 3), TEST).mean(0))
    with pytest.raises(AssertionError):
        close(result.variances, scores.var(0))


def tensors(data):
    return tuple(torch.as_tensor(side) for side in data)


def loader(**settings):
    return DataLoader(TensorDataset(*tensors(TEST)), 2, **settings)


def read_only(data):
    for side in (copied := tuple(np.array(side) for side in data)):
        side.flags.writeable = False
    return copied


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Dataset(*TEST),
        lambda: GroupedDataset(*TEST, data_groups=[1, 0, 1, 0, 0]),
        lambda: TEST,
        lambda: list(TEST),
        lambda: read_only(TEST),
        lambda: tensors(TEST),
        loader,
        lambda: loader(shuffle=True),
        lambda: list(loader()),
        lambda: [tuple(side[:2] for side in TEST), [side[2:] for side in TEST]],
    ],
    ids=[
        "dataset",
        "grouped",
        "arrays",
        "list",
        "read-only",
        "tensors",
        "loader",
        "shuffled",
        "batches",
        "arrays",
    ],
)
def test_test_data_of_every_kind_gives_the_same_values(scores, make, batch_size):
    result = values_of(test=make(), batch_size=batch_size)
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))


def test_a_group_is_worth_the_sum_of_its_samples(scores):
    result = DataInfValuation(build(), TEST).fit(grouped(group_names=["a", "b", "c"])).result
    close(result.values, group_scores(scores).mean(0))
    close(result.variances, group_scores(scores).var(0, ddof=1))
    assert result.indices.tolist() == [0, 1, 2]
    assert result.names.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(result.counts, [M] * 3)


def test_tensors_in_a_dataset_of_pydvl(scores):
    """As its development version has them, with inputs of any shape."""
    train, test = Dataset(*TRAIN), Dataset(*TEST)
    train._x, train._y = tensors(TRAIN)
    test._x, test._y = tensors(TEST)
    result = DataInfValuation(build(), test).fit(train).result
    close(result.values, scores.mean(0))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 8), (6, 1)])
def test_few_samples(n, m):
    train, test = samples(n, 4), samples(m, 5)
    result = values_of(train, test)
    exact = oracle(train, test)
    close(result.values, exact.mean(0))
    variances = exact.var(0, ddof=1) if m > 1 else np.full(n, np.nan)
    np.testing.assert_allclose(result.variances, variances, rtol=1e-9)


def test_results_on_parts_of_the_test_data_add_up(scores):
    halves = [values_of(test=tuple(side[part] for side in TEST)) for part in np.s_[:2, 2:]]
    whole = halves[0] + halves[1]
    close(whole.values, scores.mean(0))
    np.testing.assert_array_equal(whole.counts, [M] * N)


def test_other_influence_models():
    model, rows = network(), partial(oracle_rows, network(), F.cross_entropy, BLOCKS)
    test, train = rows(TEST), rows(TRAIN)
    plain = sum(test[b] @ train[b].T for b in BLOCKS)
    result = values_of(influence=HessianFreeInfluence(model, F.cross_entropy))
    close(result.values, plain.mean(0).numpy())
    assert result.algorithm == "Hessian-free"
    exact = 0
    for b in BLOCKS:
        damped = train[b].T @ train[b] / N + 0.2 * torch.eye(train[b].shape[1]).double()
        exact = exact + test[b] @ torch.linalg.solve(damped, train[b].T)
    result = values_of(influence=ExactInfluence(model, F.cross_entropy, 0.2))
    close(result.values, exact.mean(0).numpy())
    assert result.algorithm == "exact"


# Aggregates


def median(influences):
    return np.median(influences, axis=0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_function_of_all_influences(tmp_path, scores, stored):
    store = {"store": tmp_path / "run.zarr"} if stored else {}
    valuation = DataInfValuation(build(), TEST, median, batch_size=2, **store)
    result = valuation.fit(grouped()).result
    close(result.values, np.median(group_scores(scores), axis=0))
    assert np.isnan(result.variances).all()
    np.testing.assert_array_equal(result.counts, [M] * 3)
    assert result.algorithm == "DataInf (median)"


@pytest.mark.parametrize("wrong", [np.mean, lambda s: s, lambda s: s[0] * np.nan])
def test_a_function_that_does_not_return_values_is_refused(wrong):
    with pytest.raises(PlanError, match=r"one finite number for each column.*\(5, 13\)"):
        values_of(aggregate=wrong)


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


# Stores and processes


@pytest.mark.parametrize("make", [grouped, lambda: Dataset(*TRAIN)], ids=["groups", "samples"])
@pytest.mark.parametrize("fitted", [False, True])
def test_a_store_gives_the_same_values_and_goes_on(tmp_path, scores, make, fitted):
    influence = build().fit([tensors(samples(N, 7))]) if fitted else build()
    valuation = DataInfValuation(influence, TEST, store=tmp_path / "run.zarr", batch_size=4)
    plain = DataInfValuation(build(), TEST).fit(make()).result
    result = valuation.fit(make()).result
    close(result.values, plain.values)
    close(result.variances, plain.variances)
    run = InfluenceRun(tmp_path / "run.zarr")
    order = np.argsort(run.train_ids)
    close(run.scores[...][:, order], scores)
    gradients = run.attrs["gradients"]
    assert valuation.fit(make()).result == result
    assert InfluenceRun(tmp_path / "run.zarr").attrs["gradients"] == gradients > 0
    with pytest.raises(StoreExistsError, match="training data"):
        valuation.fit(Dataset(*samples(N, 8)))


def test_the_exact_inverse_with_a_store(tmp_path):
    influence = ExactInfluence(network(), F.cross_entropy)
    plain = values_of(influence=influence)
    close(values_of(influence=influence, store=tmp_path / "run.zarr").values, plain.values)


class Noted:
    """A loss that leaves the number of the process that computes it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, outputs, y):
        (self.folder / str(os.getpid())).touch()
        return F.cross_entropy(outputs, y)


def processes(folder):
    return {int(path.name) for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"n_jobs": 2}], ids=["surrounding", "own"])
def test_processes_of_joblib_give_the_same_values(tmp_path, scores, config):
    influence = DataInfInfluence(network(), Noted(tmp_path))
    with joblib.parallel_config(n_jobs=1 if config else 2):
        result = values_of(influence=influence, **config)
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))
    assert processes(tmp_path)
    assert os.getpid() not in processes(tmp_path)


def test_threads_of_joblib_are_refused():
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(PlanError, match=r"runs threads.*loky"),
    ):
        values_of()


def test_a_dask_client(tmp_path, scores):
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with Client(processes=False, **settings) as client:
        result = values_of(client=client, store=tmp_path / "run.zarr")
    close(result.values, scores.mean(0))


# Runs


def run(store, **settings):
    settings = {"progress": False, "tile": (2, 4), **settings}
    return run_influences(build(), tensors(TEST), tensors(TRAIN), store, **settings)


@pytest.mark.parametrize("by_block", [False, True])
def test_a_run_has_values(tmp_path, scores, by_block):
    result = to_valuation_result(run(tmp_path / "run.zarr", by_block=by_block))
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))
    np.testing.assert_array_equal(result.counts, [M] * N)
    np.testing.assert_array_equal(result.indices, np.arange(N))
    assert result.names.tolist() == [str(i) for i in range(N)]
    assert (result.algorithm, result.status) == ("DataInf", Status.Converged)


def test_a_run_with_the_groups_and_names_of_its_data(tmp_path, scores):
    """Columns of the run are in the order of x, samples of the data set in that of groups."""
    assert grouped().data_indices().tolist() != list(range(N))
    done = run(tmp_path / "run.zarr")
    result = to_valuation_result(done, grouped(group_names=["a", "b", "c"]))
    close(result.values, group_scores(scores).mean(0))
    close(result.variances, group_scores(scores).var(0, ddof=1))
    assert result.names.tolist() == ["a", "b", "c"]
    named = to_valuation_result(done, Dataset(*TRAIN, data_names=list("abcdefghijklm")))
    assert named.names.tolist() == list("abcdefghijklm")


def test_a_run_with_the_top_only_has_no_variances(tmp_path, scores):
    result = to_valuation_result(run(tmp_path / "run.zarr", top_k=3))
    close(result.values, scores.mean(0))
    assert np.isnan(result.variances).all()


def test_a_run_of_named_samples(tmp_path, scores):
    names = [f"sample {i}" for i in range(N)]
    done = run(tmp_path / "run.zarr", ids={"train": names})
    result = to_valuation_result(done)
    assert result.names.tolist() == names
    close(result.values, scores.mean(0))
    with pytest.raises(SourceError, match="ids such as 'sample 0'"):
        to_valuation_result(done, Dataset(*TRAIN))


def test_a_run_of_groups_of_test_samples(tmp_path, scores):
    result = to_valuation_result(run(tmp_path / "run.zarr", query_groups=[0, 0, 1, 1, 1]))
    means = np.stack([scores[:2].mean(0), scores[2:].mean(0)])
    close(result.values, means.mean(0))
    close(result.variances, means.var(0, ddof=1))
    np.testing.assert_array_equal(result.counts, [2] * N)


def test_a_run_and_data_of_another_length(tmp_path):
    with pytest.raises(SourceError, match=r"The run has 13 .* and the data 4 "):
        to_valuation_result(run(tmp_path / "run.zarr"), Dataset(*samples(4, 1)))


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"\0" * 50)])
def test_a_damaged_run_is_refused(tmp_path, damage):
    done = run(tmp_path / "run.zarr")
    damage(sorted((tmp_path / "run.zarr" / "scores" / "c").rglob("*"))[-1])
    with pytest.raises(StoreError, match="scores"):
        to_valuation_result(done)


# Numbers of all kinds


def test_floats_are_cast_to_the_model():
    """float64 arrays and a float32 model, and the other way round."""
    single = DataInfInfluence(network().float(), F.cross_entropy)
    result = values_of(influence=single)
    close(result.values, oracle(TRAIN, TEST, dense.in_float64(single.model)).mean(0), 1e-4)
    narrow = [(side[0].astype(np.float32), side[1]) for side in (TRAIN, TEST)]
    wide = [(x.astype(np.float64), y) for x, y in narrow]
    close(values_of(*narrow).values, oracle(*wide).mean(0))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_class_indices_of_any_integer_type(scores, dtype):
    cast = [(x, y.astype(dtype)) for x, y in (TRAIN, TEST)]
    close(values_of(*cast).values, scores.mean(0))


def test_tokens_stay_integers():
    """In bytes, which an embedding does not take as they are."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    rng = np.random.default_rng(0)
    train, test = (
        (rng.integers(0, 7, (length, 3)).astype(np.uint8), rng.integers(0, 3, length))
        for length in (8, 3)
    )
    blocks = {"0": ["0.weight"], "2": ["2.weight", "2.bias"]}
    longs = [tuple(side.astype(np.int64) for side in data) for data in (test, train)]
    v, g = (oracle_rows(model, F.cross_entropy, blocks, data) for data in longs)
    exact = dense.influences(v, g, g, {b: dense.automatic_damping(g[b]) for b in blocks})
    result = values_of(train, tensors(test), DataInfInfluence(model, F.cross_entropy))
    close(result.values, exact.mean(0).numpy())


def test_targets_of_a_regression():
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(k, 3)), rng.normal(size=(k, 2))) for k in (8, 3)]
    train = Dataset(*data[0], multi_output=True)
    result = DataInfValuation(DataInfInfluence(model, F.mse_loss), data[1]).fit(train).result
    blocks, wide = {"": ["weight", "bias"]}, dense.in_float64(model)
    g, v = (oracle_rows(wide, F.mse_loss, blocks, side) for side in data)
    exact = dense.influences(v, g, g, {"": dense.automatic_damping(g[""])})
    close(result.values, exact.mean(0).numpy(), 1e-4)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"influence": network()}, ModelError, "influence is a Sequential. Pass a DataInf"),
        ({"aggregate": "sum"}, PlanError, "'sum'"),
        ({"batch_size": 0}, BatchError, "positive number, got 0"),
        ({"client": "tcp://nowhere:1"}, PlanError, "Pass store"),
        ({"test_data": iter([])}, SourceError, "is a list_iterator. Pass"),
        ({"test_data": TensorDataset(*tensors(TEST))}, SourceError, "TensorDataset. Pass"),
        ({"test_data": loader(shuffle=True), "store": "s"}, SourceError, "random order"),
    ],
    ids=["influence", "aggregate", "size", "client", "iterator", "dataset", "shuffled"],
)
def test_arguments_that_make_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        DataInfValuation(**{"influence": build(), "test_data": TEST, **arguments})


LABELS = np.array(list("abcda"))


@pytest.mark.parametrize(
    ("test", "error", "message"),
    [
        ((TEST[0][:, :2], TEST[1]), BatchError, r"shape \(3,\), a test sample \(2,\)"),
        ((TEST[0][:, :, None], TEST[1]), BatchError, r"test sample \(3, 1\)"),
        ((TEST[0].astype(int), TEST[1]), BatchError, "floating numbers, the test inputs integer"),
        ((TEST[0], LABELS), BatchError, "y is an array of <U1. Turn it into numbers"),
        ((TEST[0] * 1j, TEST[1]), BatchError, "x is an array of complex128"),
        ((torch.ones(2, 3) * 1j, torch.zeros(2)), BatchError, "x has complex numbers"),
        ((TEST[0], TEST[1][:3]), BatchError, "differ in their number of samples"),
        ((TEST[0][:0], TEST[1][:0]), BatchError, "no samples"),
        ([], SourceError, "test data is empty"),
        ([{"x": tensors(TEST)[0]}], BatchError, "is a dict, not an"),
    ],
    ids=[
        "features",
        "shape",
        "kind",
        "strings",
        "complex",
        "complex-tensor",
        "length",
        "none",
        "empty",
        "mapping",
    ],
)
def test_test_data_that_does_not_fit(test, error, message):
    with pytest.raises(error, match=message):
        values_of(test=test)


def test_data_that_is_not_of_pydvl():
    with pytest.raises(SourceError, match=r"is a tuple\. Pass pydvl\.valuation\.Dataset"):
        DataInfValuation(build(), TEST).fit(TRAIN)


def test_inputs_that_the_model_does_not_take_are_described():
    whole = [(x.round().astype(int), y) for x, y in (TRAIN, TEST)]
    with pytest.raises(RuntimeError, match="dtype") as caught:
        values_of(*whole)
    assert "int64 of shape (13, 3). Integers stay integers" in caught.value.__notes__[0]


# Beside pyDVL's own methods


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


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
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
