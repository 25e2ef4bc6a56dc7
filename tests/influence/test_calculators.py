"""Through pyDVL's calculators: the same numbers as the direct call, in memory and in Zarr."""

from functools import partial
from itertools import combinations

import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from pydvl.influence import DaskInfluenceCalculator, SequentialInfluenceCalculator
from pydvl.influence.influence_calculator import DisableClientSingleThreadCheck
from pydvl.influence.torch.util import (
    NestedTorchCatAggregator,
    TorchCatAggregator,
    TorchNumpyConverter,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence, ExactInfluence, HessianFreeInfluence
from zoo import Tied

TRAIN, TEST = 10, 7
ZARR_NOISE = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    train = torch.randn(TRAIN, 3), torch.randint(0, 4, (TRAIN,))
    test = torch.randn(TEST, 3), torch.randint(0, 4, (TEST,))
    return model, F.cross_entropy, train, test


def fitted(rows="memory"):
    model, loss, train, test = classifier()
    loader = DataLoader(TensorDataset(*train), batch_size=4)
    return DataInfInfluence(model, loss, rows=rows).fit(loader), train, test


def close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual), expected, rtol=1e-4, atol=1e-5)


def loaders(train, test):
    return DataLoader(TensorDataset(*test), batch_size=3), DataLoader(
        TensorDataset(*train), batch_size=4
    )


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@ZARR_NOISE
def test_sequential(rows, tmp_path):
    influence, train, test = fitted(rows)
    direct = influence.influences(*test, *train)
    calculator = SequentialInfluenceCalculator(influence)
    values = calculator.influences(*loaders(train, test))
    close(values.compute(aggregator=NestedTorchCatAggregator()), direct)
    values.to_zarr(str(tmp_path / "scores.zarr"), TorchNumpyConverter())
    close(zarr.open(str(tmp_path / "scores.zarr"), mode="r")[:], direct)

    factors = calculator.influence_factors(loaders(train, test)[0])
    close(factors.compute(aggregator=TorchCatAggregator()), influence.influence_factors(*test))
    from_factors = calculator.influences_from_factors(
        factors.compute(aggregator=TorchCatAggregator()).split(3), loaders(train, test)[1]
    )
    close(from_factors.compute(aggregator=NestedTorchCatAggregator()), direct)


OTHERS = {
    "exact": ExactInfluence,
    "plain": HessianFreeInfluence,
    "scaled": partial(HessianFreeInfluence, scaled=True),
}


def fitted_other(kind):
    model, loss, train, test = classifier()
    loader = DataLoader(TensorDataset(*train), batch_size=4)
    return OTHERS[kind](model, loss).fit(loader), train, test


@pytest.mark.parametrize("kind", OTHERS)
def test_sequential_of_other_inverses(kind):
    influence, train, test = fitted_other(kind)
    direct = influence.influences(*test, *train)
    calculator = SequentialInfluenceCalculator(influence)
    values = calculator.influences(*loaders(train, test))
    close(values.compute(aggregator=NestedTorchCatAggregator()), direct)
    factors = calculator.influence_factors(loaders(train, test)[0])
    close(factors.compute(aggregator=TorchCatAggregator()), influence.influence_factors(*test))


def test_the_inverses_are_told_apart():
    """Negative control: were one taken for another, the comparisons would fail."""
    influences = [fitted()[0], *(fitted_other(kind)[0] for kind in OTHERS)]
    train, test = fitted()[1:]
    scores = [influence.influences(*test, *train) for influence in influences]
    for a, b in combinations(scores, 2):
        with pytest.raises(AssertionError):
            close(a, b)


def test_sequential_perturbation():
    influence, train, test = fitted()
    direct = influence.influences(*test, *train, mode="perturbation")
    values = SequentialInfluenceCalculator(influence).influences(
        *loaders(train, test), mode="perturbation"
    )
    close(values.compute(aggregator=NestedTorchCatAggregator()), direct)


def dask_arrays(train, test):
    """Test and training data in chunks of at least two: pyDVL squeezes a chunk of one away."""
    chunks = (5, 5, 4, 4)
    return [
        da.from_array(t.numpy(), chunks=(chunk, *t.shape[1:]))
        for t, chunk in zip((*test, *train), chunks, strict=True)
    ]


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@ZARR_NOISE
def test_dask(client, rows, tmp_path):
    influence, train, test = fitted(rows)
    direct = influence.influences(*test, *train)
    arrays = dask_arrays(train, test)
    calculator = DaskInfluenceCalculator(influence, TorchNumpyConverter(), client)
    assert calculator.n_parameters == influence.n_parameters
    values = calculator.influences(*arrays)
    close(values.compute(), direct)
    values.to_zarr(str(tmp_path / "scores.zarr"))
    close(zarr.open(str(tmp_path / "scores.zarr"), mode="r")[:], direct)
    factors = calculator.influence_factors(*arrays[:2])
    assert factors.shape == (TEST, influence.n_parameters)
    close(factors.compute(), influence.influence_factors(*test))
    close(calculator.influences_from_factors(factors, *arrays[2:]).compute(), direct)


@pytest.mark.parametrize("kind", OTHERS)
def test_dask_of_other_inverses(client, kind):
    influence, train, test = fitted_other(kind)
    arrays = dask_arrays(train, test)
    calculator = DaskInfluenceCalculator(influence, TorchNumpyConverter(), client)
    close(calculator.influences(*arrays).compute(), influence.influences(*test, *train))
    factors = calculator.influence_factors(*arrays[:2])
    close(factors.compute(), influence.influence_factors(*test))
    direct = influence.influences(*test, *train, mode="perturbation")
    close(calculator.influences(*arrays, mode="perturbation").compute(), direct)


# Python 3.12 warns of the loader's workers, which are forked beside the cluster's threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_dask_with_a_training_loader_that_has_worker_processes(client):
    model, loss, train, test = classifier()
    loader = DataLoader(TensorDataset(*train), batch_size=4, num_workers=1, persistent_workers=True)
    influence = DataInfInfluence(model, loss, rows="recompute").fit(loader)
    calculator = DaskInfluenceCalculator(influence, TorchNumpyConverter(), client)
    values = calculator.influences(*dask_arrays(train, test))
    close(values.compute(), influence.influences(*test, *train))


def test_dask_perturbation(client):
    influence, train, test = fitted()
    arrays = dask_arrays(train, test)
    calculator = DaskInfluenceCalculator(influence, TorchNumpyConverter(), client)
    values = calculator.influences(*arrays, mode="perturbation")
    close(values.compute(), influence.influences(*test, *train, mode="perturbation"))


def test_one_dimensional_labels_fail_in_a_chunk_of_one_inside_pydvl():
    """pyDVL squeezes the label away before it reaches the model; the README says what to do."""
    influence, _, test = fitted()
    arrays = [da.from_array(t.numpy(), chunks=(3, *t.shape[1:])) for t in test]
    assert arrays[0].chunks[0] == (3, 3, 1)
    calculator = DaskInfluenceCalculator(
        influence, TorchNumpyConverter(), DisableClientSingleThreadCheck
    )
    with pytest.raises(TypeError, match=r"expected np\.ndarray"):
        calculator.influences(*arrays).compute(scheduler="synchronous")


@ZARR_NOISE
def test_integer_inputs_need_astype_before_to_zarr(client, tmp_path):
    """pyDVL declares the result to have the dtype of x: to_zarr truncates, compute is right."""
    torch.manual_seed(0)
    model = Tied()
    x, y = torch.randint(0, 6, (TRAIN, 4)), torch.randn(TRAIN, 6)
    influence = DataInfInfluence(model, F.mse_loss, 0.1, "full").fit([(x, y)])
    direct = influence.influences(x, y)
    arrays = [da.from_array(t.numpy(), chunks=(5, t.shape[1])) for t in (x, y)]
    values = DaskInfluenceCalculator(influence, TorchNumpyConverter(), client).influences(*arrays)
    assert values.dtype == np.int64
    close(values.compute(), direct)
    values.astype("float32").to_zarr(str(tmp_path / "right.zarr"))
    close(zarr.open(str(tmp_path / "right.zarr"), mode="r")[:], direct)
    values.to_zarr(str(tmp_path / "truncated.zarr"))
    stored = zarr.open(str(tmp_path / "truncated.zarr"), mode="r")[:]
    np.testing.assert_array_equal(stored, direct.numpy().astype(np.int64))
