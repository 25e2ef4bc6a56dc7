"""DataInfValuation against the mean of the dense oracle's influences."""

from functools import partial

import numpy as np
import pytest
import torch
from pydvl.utils.status import Status
from pydvl.valuation.dataset import Dataset, GroupedDataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import DataInfInfluence
from pydvl_datainf.errors import BatchError, ModelError, PlanError, SourceError
from pydvl_datainf.influence import ExactInfluence, HessianFreeInfluence
from pydvl_datainf.valuation import DataInfValuation
from small_runs import close
from valued import (
    BLOCKS,
    TEST,
    TRAIN,
    M,
    N,
    build,
    group_scores,
    grouped,
    network,
    oracle,
    oracle_rows,
    samples,
    tensors,
    values_of,
)

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
