"""A small classifier with its data, and what the formulas say of it under any inverse."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense

N, M, B = 11, 4, 6  # fitted, test and other training samples: all different, as is every width

STRUCTURES = {
    "module": {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]},
    "full": {"": ["0.weight", "0.bias", "2.weight", "2.bias"]},
    "parameter_wise": {name: [name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")},
    "some": {"a": ["0.bias", "2.weight"], "b": ["0.weight"]},
}
SPLITS = {"one batch": [11], "unequal last": [4, 4, 3], "batch of one": [5, 5, 1], "ones": [1] * 11}


class Problem:
    """Data of n fitted, m test and b other training samples, which are all different.

    `inverse` is a function of rows and λ to a matrix.
    """

    def __init__(self, inverse, structure="module", n=N, dtype=torch.float64):
        generator = torch.Generator().manual_seed(n)
        self.inverse, self.members, self.loss = inverse, STRUCTURES[structure], F.cross_entropy
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
        self.known = {}
        self.structure = self.members if structure == "some" else structure
        self.fitted, self.test, self.train = (
            (
                torch.randn(length, 3, generator=generator, dtype=dtype),
                torch.randint(0, 4, (length,), generator=generator),
            )
            for length in (n, M, B)
        )

    def batches(self, size=4):
        return DataLoader(TensorDataset(*self.fitted), size)

    def cut(self, sizes):
        """The fitted samples as a list of batches of these sizes."""
        x, y = self.fitted
        return list(zip(x.split(sizes), y.split(sizes), strict=True))

    def rows(self, data):
        """For each block the per-sample gradients in float64; computed once for the same data."""
        if id(data) not in self.known:
            self.known[id(data)] = data, self.computed_rows(data)
        return self.known[id(data)][1]

    def computed_rows(self, data):
        model, wide = dense.in_float64(self.model), (data[0].double(), data[1])
        order = [name for name, _ in model.named_parameters()]
        return {
            block: dense.gradients(model, self.loss, wide, [n for n in order if n in names])
            for block, names in self.members.items()
        }

    def damping(self, regularization):
        rows = self.rows(self.fitted)
        if regularization == "auto":
            return {block: dense.automatic_damping(g) for block, g in rows.items()}
        return dict.fromkeys(rows, regularization)

    def matrices(self, regularization):
        """For each block its inverse."""
        damping = self.damping(regularization)
        return {b: self.inverse(g, damping[b]) for b, g in self.rows(self.fitted).items()}

    def influences_by_block(self, left, right, regularization):
        v, g = self.rows(left), self.rows(right)
        return {b: v[b] @ M @ g[b].T for b, M in self.matrices(regularization).items()}

    def influences(self, left, right, regularization):
        return sum(self.influences_by_block(left, right, regularization).values())

    def perturbations(self, left, right, regularization):
        v, order, total = self.rows(left), [n for n, _ in self.model.named_parameters()], 0
        for block, M in self.matrices(regularization).items():
            names = [n for n in order if n in self.members[block]]
            mixed = dense.mixed_derivative(self.model, self.loss, right, names)
            total = total + torch.einsum("ia,jxa->ijx", v[block] @ M, mixed)
        return total

    def largest_products(self, regularization):
        """Σ_l ‖v_l‖‖g_l‖/λ_l of test and fitted samples, which bounds what rounding can do."""
        v, g, damping = self.rows(self.test), self.rows(self.fitted), self.damping(regularization)
        return sum(v[b].norm(dim=1)[:, None] * g[b].norm(dim=1) / damping[b] for b in v)


@cache
def datainf_problem(structure="module", dtype=torch.float64):
    return Problem(dense.datainf_matrix, structure, dtype=dtype)


def close(actual, expected, relative=1e-9):
    """Compares entries; the bound is relative to each and to the largest."""
    actual = torch.as_tensor(actual)
    torch.testing.assert_close(
        actual, expected, rtol=relative, atol=relative * float(expected.abs().max())
    )
