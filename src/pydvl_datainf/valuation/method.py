"""`DataInfValuation`: a `Valuation` of pyDVL whose values are influences."""

import copy
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import joblib
import torch
from distributed import Client
from pydvl.valuation.base import Valuation
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.result import ValuationResult
from tqdm.auto import tqdm

from pydvl_datainf.batches import Pair
from pydvl_datainf.errors import BatchError, DataInfError, ModelError, PlanError, SourceError
from pydvl_datainf.influence import BlockwiseInfluence, EnsembleInfluence
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner.run import run_influences
from pydvl_datainf.valuation.data import batches, check_alike, check_test_data, input_dtype
from pydvl_datainf.valuation.values import (
    Floats,
    Values,
    aggregated,
    mean_of_run,
    mean_over,
    positions_of,
    result_of,
    tiles_of,
    unit_sums,
)

Aggregate: TypeAlias = Literal["mean"] | Callable[[Floats], Any]

_ALONE = threading.RLock()
"""Held while values are computed: several valuations may share a model, and threads must not."""


class DataInfValuation(Valuation):
    r"""Values training samples by their influence on test samples.

    The value of training sample k is (1/m) Σ_t influence(t, k) over the m test samples t, for the
    influence that the given model computes. Positive = helpful: more weight on k lowers the mean
    loss of the test samples. The value of a group of a `GroupedDataset` is the sum of the values
    of its samples. Values are comparable within one `fit`.

    In the result, `variances` are the sample variances over the test samples (with m - 1), `counts`
    are m, and so `stderr` is the standard error of the values with respect to the choice of test
    samples. With a store or in processes the values are the same to rounding, but for the exact
    inverse and compressed rows, which are read in half precision there. A variance that is not
    known (one test sample, an `aggregate` of the caller's) is NaN.

    Args:
        influence: a `DataInfInfluence`, one of its siblings or an `EnsembleInfluence` of them
            (without a store or processes), fitted or not. `fit` fits a copy of
            it to the data, with λ chosen anew where they were not given, unless it is fitted on
            exactly this data, and leaves it as it is: one model can be shared by valuations of any
            data.
        test_data: a pyDVL `Dataset`, an (x, y) pair of arrays or tensors, or a DataLoader or list
            of such batches. Like the training data it is cast: floating numbers to the dtype of the
            model, integers and truth values to int64.
        aggregate: "mean", or a function of the influences (m test samples, n training samples or
            groups) that returns n values, of which a higher one is better.
        batch_size: the largest number of samples in a batch of training or test data. Each batch
            of test samples takes a pass over the training gradients, and memory for about three
            vectors of the influence's `n_parameters` for each of its samples.
        store: where `run_influences` keeps the influences, for `fit` to go on after a stop; one for
            each training set. None = nowhere.
        client: a Dask client, or the address of a scheduler, for `run_influences`; needs a store.
        n_jobs: worker processes on this machine, as in joblib; None = this process, unless a
            surrounding `joblib.parallel_config` says otherwise.
        memory: what arrays may take in each process of a run, as in `run_influences`.
        progress: whether to show progress bars.

    Raises:
        ModelError: if `influence` is no influence model of this package.
        SourceError: if the test data is of no such kind.
        PlanError: if there is no such aggregate, a client without a store or beside n_jobs, or
            an ensemble with a store or n_jobs.
        BatchError: if batch_size is not a positive integer.

    Examples:
        >>> import numpy as np
        >>> from pydvl.valuation import Dataset
        >>> from torch import nn
        >>> from pydvl_datainf import DataInfInfluence
        >>> x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
        >>> train, test = Dataset.from_arrays(x, y, train_size=16, random_state=0)
        >>> influence = DataInfInfluence(nn.Linear(3, 2), nn.functional.cross_entropy)
        >>> result = DataInfValuation(influence, test).fit(train).result
        >>> result.algorithm, len(result), int(result.counts[0])
        ('DataInf', 16, 4)
    """

    def __init__(
        self,
        influence: BlockwiseInfluence | EnsembleInfluence,
        test_data: Any,
        aggregate: Aggregate = "mean",
        *,
        batch_size: int = 64,
        store: Any = None,
        client: Client | str | None = None,
        n_jobs: int | None = None,
        memory: int | str = "2GiB",
        progress: bool = False,
    ):
        super().__init__()
        if not isinstance(influence, BlockwiseInfluence | EnsembleInfluence):
            raise ModelError(
                f"influence is a {type(influence).__name__}. Pass a DataInfInfluence, "
                "ExactInfluence or HessianFreeInfluence."
            )
        if aggregate != "mean" and not callable(aggregate):
            raise PlanError(f'aggregate must be "mean" or a function, got {aggregate!r}.')
        if type(batch_size) is not int or batch_size < 1:
            raise BatchError(f"batch_size must be a positive number, got {batch_size!r}.")
        if client is not None and store is None:
            raise PlanError(
                "The workers of a Dask cluster write into a store that all of them see. Pass store "
                "as well as client."
            )
        if client is not None and n_jobs is not None:
            raise PlanError("Pass client or n_jobs, not both.")
        if isinstance(influence, EnsembleInfluence) and (store is not None or n_jobs is not None):
            raise _no_run()
        check_test_data(test_data, in_order=store is not None)
        self.influence = influence
        self.test_data = test_data
        self.aggregate = aggregate
        self.batch_size = batch_size
        self.store = store
        self.client = client
        self.n_jobs = n_jobs
        self.memory = memory
        self.progress = progress
        self.algorithm_name = (
            influence.name if isinstance(influence, EnsembleInfluence) else influence.inverse.name
        )
        if callable(aggregate):
            self.algorithm_name += f" ({getattr(aggregate, '__name__', type(aggregate).__name__)})"

    def fit(self, data: Dataset, continue_from: ValuationResult | None = None) -> Self:
        """Values the samples, or groups, of a data set.

        Args:
            data: a pyDVL `Dataset` or `GroupedDataset`.
            continue_from: an earlier result of this method for these samples. It is checked, and
                nothing is left to add to it: values are those of this data and of the model as it
                is now, and nothing counts twice. (A stopped run goes on from its `store`.)

        Returns:
            The instance itself. Its result is unchanged if anything is raised.

        Raises:
            SourceError: if data is no pyDVL data set, continue_from belongs to other samples or
                another method, or there are no test samples.
            BatchError: if the data does not go with the test data, or is not made of numbers.
            RuntimeError: of torch, if the model does not take the inputs.
        """
        if not isinstance(data, Dataset):
            raise SourceError(
                f"The training data is a {type(data).__name__}. Pass pydvl.valuation.Dataset(x, y) "
                "or a GroupedDataset."
            )
        self._check_continues(data, continue_from)
        try:
            with _ALONE:
                values = self._values(data)
        except RuntimeError as error:
            if not isinstance(
                error, DataInfError | torch.cuda.OutOfMemoryError
            ):  # the model does not take the inputs
                x = data.data().x
                error.add_note(
                    f"The training inputs are {x.dtype} of shape {tuple(x.shape)}. Integers stay "
                    "integers, as models of tokens need them; make them floating for other models."
                )
            raise
        self._result = result_of(values, self.algorithm_name, data.indices, data.names)
        return self

    def _check_continues(self, data: Dataset, result: ValuationResult | None) -> None:
        if result is not None and len(result) != len(data):
            raise SourceError(
                f"continue_from has {len(result)} values, and the data {len(data)} samples or "
                "groups. Pass the result that belongs to this data, or none."
            )
        if result is not None and result.algorithm != self.algorithm_name:
            raise SourceError(
                f"continue_from is a result of {result.algorithm!r}, and this method is "
                f"{self.algorithm_name!r}. Pass a result of this method, or none."
            )
        try:
            self._init_or_check_result(data, result)
        except ValueError as error:
            raise SourceError(
                f"continue_from does not belong to this data: {error} Pass the result that does, "
                "or none."
            ) from error

    def _values(self, data: Dataset) -> Values:
        if self.store is not None:
            return self._values_in_store(data, self.store)
        if joblib.effective_n_jobs(self.n_jobs) == 1:
            return self._values_here(data)
        with tempfile.TemporaryDirectory(prefix="pydvl-datainf-") as folder:
            return self._values_in_store(data, Path(folder) / "influences.zarr")

    def _values_here(self, data: Dataset) -> Values:
        positions = positions_of(data, data.data_indices())
        train, tests = self._train_and_tests(data)
        fitted = self._fitted(train)
        bar = tqdm(tests, "test data", leave=False, disable=not self.progress)
        tiles = (fitted.training_influences(x, y).double().cpu().numpy() for x, y in bar)
        units = (unit_sums(tile, positions) for tile in tiles)
        return mean_over(units) if self.aggregate == "mean" else aggregated(units, self.aggregate)

    def _values_in_store(self, data: Dataset, store: Any) -> Values:
        run = self._run(data, store)
        positions = positions_of(data, run.train_ids)
        if self.aggregate == "mean":
            return mean_of_run(run, positions)
        return aggregated((unit_sums(tile, positions) for tile in tiles_of(run)), self.aggregate)

    def _run(self, data: Dataset, store: Any) -> InfluenceRun:
        if isinstance(self.influence, EnsembleInfluence):  # with joblib.parallel_config
            raise _no_run()
        train, tests = self._train_and_tests(data)
        # The λ of a fitted model may be those of other data, and a run would keep them.
        influence = self.influence.unfitted(fix_damping=False)
        # Rows are computed again rather than stored in half precision, but for the exact inverse.
        kept: dict[str, Any] = {"rows": "recompute" if influence.inverse.joins else "auto"}
        if influence.compression is not None:
            kept = {"rows": "compressed", **influence.compression.asked}
        return run_influences(
            influence,
            list(tests),
            train,
            store,
            client=self.client,
            n_jobs=self.n_jobs,
            memory=self.memory,
            **kept,
            ids={"train": data.data_indices()},
            progress=self.progress,
        )

    def _fitted(self, train: list[Pair]) -> BlockwiseInfluence | EnsembleInfluence:
        if self.influence.is_fitted_on(train):
            return self.influence
        return copy.copy(self.influence).fit(train)

    def _train_and_tests(self, data: Dataset) -> tuple[list[Pair], Iterable[Pair]]:
        one = self.influence
        dtype = input_dtype((one.members[0] if isinstance(one, EnsembleInfluence) else one).model)
        train = list(batches(data, dtype, self.batch_size))
        tests = self._tests(train[0], batches(self.test_data, dtype, self.batch_size))
        first = next(tests, None)  # before any work
        if first is None:
            raise SourceError("The test data is empty; a value needs at least one test sample.")
        return train, chain([first], tests)

    def _tests(self, train: Pair, tests: Iterable[Pair]) -> Iterator[Pair]:
        for test in tests:
            check_alike(train[0], test[0])
            yield test


def _no_run() -> PlanError:
    return PlanError(
        "Values of an ensemble are computed in this process and kept nowhere. Leave out store, "
        "client and n_jobs; or make a run of each member with run_influences, add these with "
        "sum_runs, and take to_valuation_result."
    )
