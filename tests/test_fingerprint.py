"""Checksums of whatever tensors a model or a batch may hold."""

import numpy as np
import pytest
import torch

from pydvl_datainf.fingerprint import DataChecksum, as_bytes

NUMBERS = torch.arange(60.0).reshape(6, 10)
COMPLEX = torch.complex(NUMBERS, 2 * NUMBERS)
TENSORS = {
    "contiguous": NUMBERS,
    "one entry of a column": NUMBERS[2:3, 5],
    "one entry in three dimensions": NUMBERS[2:3, None, 5:6],
    "a column": NUMBERS[:, 5],
    "transposed": NUMBERS.T,
    "empty": NUMBERS[:0],
    "without dimensions": NUMBERS[3, 4],
    "expanded": NUMBERS[:1, :1].expand(4, 3),
    "conjugated": COMPLEX.conj(),
    "negated": COMPLEX.conj().imag,
    "truth values": NUMBERS[:, 1] > 20,
    "half precision": NUMBERS[1:2, 3].half(),
    "unsigned": NUMBERS[:, 3].to(torch.uint64),
    "sparse": NUMBERS.to_sparse(),
    "a parameter": torch.nn.Parameter(NUMBERS[2:3, 5]),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_bytes_of_a_tensor_are_those_of_its_values_in_order(tensor):
    values = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    expected = np.array(values.tolist(), dtype=values.resolve_conj().resolve_neg().numpy().dtype)
    assert bytes(as_bytes(tensor)) == expected.tobytes()


def test_a_last_batch_of_one_column_counts_like_the_rest():
    """Premise: a batch of one cut out of a table has a stride that is not 1."""
    column = NUMBERS[:, 5]
    assert column[5:].stride() == (10,)
    checksums = [DataChecksum() for _ in range(2)]
    for start, stop in ((0, 5), (5, 6)):
        checksums[0].add({"x": column[start:stop]})
    checksums[1].add({"x": column})
    assert checksums[0].sums == checksums[1].sums
