"""Data of pyDVL, of PyTorch and of NumPy as the batches that influences are computed of."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydvl.valuation.dataset import Dataset
from torch import Tensor, nn

from pydvl_datainf.batches import Pair, check_batch
from pydvl_datainf.errors import BatchError, SourceError
from pydvl_datainf.gradients.sources import has_fixed_order

_CAST = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.int64}


def batches(data: Any, dtype: torch.dtype, size: int) -> Iterator[Pair]:
    """Reads data as pairs of tensors.

    Args:
        data: a pyDVL data set, an (x, y) pair of arrays or tensors, or an iterable of such batches.
        dtype: of floating numbers; all others become int64.
        size: the largest number of samples in a batch.

    Yields:
        Inputs and targets.

    Raises:
        BatchError: if a batch is no such pair, or has no samples, or no numbers.
    """
    given = tuple(data.data()) if isinstance(data, Dataset) else data
    for batch in [given] if _is_pair(given) else given:
        if not _is_pair(batch):
            raise BatchError(
                f"A batch of the test data is a {type(batch).__name__}, not an (x, y) pair of "
                "tensors, as the training data of a valuation is. Give the loader a collate_fn "
                "that returns pairs."
            )
        x, y = _cast(batch[0], dtype, "x"), _cast(batch[1], dtype, "y")
        check_batch((x, y))
        for start in range(0, len(x), size):
            yield x[start : start + size], y[start : start + size]


def check_test_data(data: Any, *, in_order: bool) -> None:
    """Checks the kind of test data.

    Args:
        data: as in `batches`.
        in_order: whether it must come in the same order each time.

    Raises:
        SourceError: if it is of another kind, can be read only once, or is shuffled.
    """
    if isinstance(data, Iterator) or not isinstance(data, Dataset | Iterable):
        raise SourceError(
            f"The test data is a {type(data).__name__}. Pass a pydvl.valuation.Dataset, an (x, y) "
            "pair of arrays or tensors, or a DataLoader or list of such batches."
        )
    if in_order and not has_fixed_order(data):
        raise SourceError(
            "The test loader yields the samples in random order, in which a stopped run could not "
            "go on. Use a DataLoader with shuffle=False, or no store."
        )


def check_alike(train: Tensor, test: Tensor) -> None:
    """Checks that training and test inputs can be those of one model.

    Args:
        train: inputs.
        test: inputs.

    Raises:
        BatchError: if they differ in their features, or one is of integers.
    """
    kinds = ["floating" if x.is_floating_point() else "integer" for x in (train, test)]
    if kinds[0] != kinds[1]:
        raise BatchError(
            f"The training inputs are {kinds[0]} numbers, the test inputs {kinds[1]} ones. Convert "
            "one of them: integers stay as they are, since models of tokens need them."
        )
    are_features = train.ndim == 2 and kinds[0] == "floating"
    if train.ndim != test.ndim or (are_features and train.shape[1] != test.shape[1]):
        raise BatchError(
            f"A training sample has the shape {tuple(train.shape[1:])}, a test sample "
            f"{tuple(test.shape[1:])}. Pass data with the same features."
        )


def input_dtype(model: nn.Module) -> torch.dtype:
    """That of the first floating parameter, which inputs meet first."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _is_pair(data: Any) -> bool:
    sides = data if isinstance(data, tuple | list) and len(data) == 2 else [None]
    return all(isinstance(side, np.ndarray | Tensor) for side in sides)


def _cast(values: npt.NDArray[Any] | Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in _CAST:
            raise BatchError(
                f"{name} is an array of {values.dtype}. Turn it into numbers first, for instance "
                "labels into 0, 1, ..."
            )
        # A copy: torch would warn of arrays that are not writable.
        values = torch.from_numpy(np.array(values, dtype=_CAST[values.dtype.kind]))
    if values.is_complex():
        raise BatchError(f"{name} has complex numbers. Split them into two real ones.")
    return values.to(dtype) if values.is_floating_point() else values.long()
