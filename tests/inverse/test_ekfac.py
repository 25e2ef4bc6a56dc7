"""EK-FAC's algebra against dense Kronecker products, and what it keeps to as a method."""

import numpy as np
import pytest
import torch

import dense
import kronecker
from method_contract import MethodContract, assert_close, random, solved
from pydvl_datainf import SourceError, vectors
from pydvl_datainf.inverse.ekfac import Eigenbasis, Ekfac, mean_squares
from pydvl_datainf.inverse.methods import EXACT

SIDES = {9: (3, 3), 60: (5, 12), 3: (3, 1), 4: (2, 2), 40: (8, 5), 8: (2, 4)}
"""Outputs and inputs of a layer of so many parameters."""


def moments(o, i):
    """Positive definite, with eigenvalues that differ."""
    factors = random(7, o, o), random(8, i, i)
    S, A = (f @ f.T + 0.1 * torch.eye(len(f)).double() for f in factors)
    return A, S


class InLayers:
    """A method that finds its eigenbasis by the width of V, to be tested as one method."""

    has_bias = False

    def matrix(self, G, λ):
        A, S = moments(*SIDES[G.shape[1]])
        return kronecker.ekfac_matrix(G, λ, A.numpy(), S.numpy(), self.has_bias)


class ByWidth(Ekfac):
    """The same method with the eigenbasis of the layer of that width."""

    has_bias = False
    joins = True

    def _of(self, V):
        A, S = moments(*SIDES[V.shape[1]])
        return Ekfac(Eigenbasis.of(A, S, has_bias=self.has_bias))

    def times(self, V, λ, n):
        return self._of(V).times(V, λ, n)

    def forms(self, V, λ, n):
        return self._of(V).forms(V, λ, n)

    def bytes(self, n, m, d):
        return self._of(torch.empty(0, d)).bytes(n, m, d)


class ByWidthWithBias(ByWidth):
    has_bias = True


class TestInLayersWithoutBias(InLayers, MethodContract):
    method = ByWidth()
    takes_recomputed_rows = False


class TestInLayersWithBias(InLayers, MethodContract):
    method = ByWidthWithBias()
    has_bias = True
    takes_recomputed_rows = False


class TestInOtherBlocks(MethodContract):
    """Where there is no eigenbasis, the exact inverse is taken."""

    method = Ekfac()
    takes_recomputed_rows = False

    def matrix(self, G, λ):
        return dense.exact_matrix(G, λ)


@pytest.fixture(params=[False, True], ids=["weight", "weight and bias"])
def layer(request):
    """An eigenbasis of 4 outputs and 3 inputs, and rows of 7 samples."""
    A, S = moments(4, 3)
    return Eigenbasis.of(A, S, has_bias=request.param), random(1, 7, 12), (A, S)


@pytest.mark.parametrize("kind", ["times", "forms"])
def test_solvers_join_by_adding_their_sums(layer, kind):
    basis, G, _ = layer
    make, V = getattr(Ekfac(basis), kind), random(2, 5, 12)
    parts = [make(V, 0.1, 7) for _ in range(2)]
    parts[0].add(G[:3])
    parts[1].add(G[3:])
    joined = make(V, 0.1, 7)
    joined.sums = parts[0].sums + parts[1].sums
    assert Ekfac(basis).joins
    assert not Ekfac().joins
    assert_close(joined.result(), solved(make, G, V, 0.1)[0])


def test_with_known_eigenvalues_no_rows_are_wanted(layer):
    basis, G, _ = layer
    V, known = random(2, 5, 12), Ekfac(basis, mean_squares(basis, G.split([3, 0, 4])))
    for kind in ("times", "forms"):
        fed, passes = solved(getattr(Ekfac(basis), kind), G, V, 0.1)
        found, none = solved(getattr(known, kind), G, V, 0.1)
        assert (passes, none, known.passes) == (1, 0, 0)
        assert_close(found, fed)


def test_the_mean_of_the_eigenvalues_is_that_of_the_squared_gradients(layer):
    """So that 0.1 times it is the automatic λ of all methods."""
    basis, G, _ = layer
    eigenvalues = mean_squares(basis, [G])
    assert eigenvalues.shape == (4, 3)
    assert 0.1 * float(eigenvalues.mean()) == pytest.approx(dense.automatic_damping(G), rel=1e-12)
    assert float(eigenvalues.std() / eigenvalues.mean()) > 0.1  # the premise: they differ


def test_rows_that_are_rotated_a_few_at_a_time_add_up(layer, monkeypatch):
    basis, G, _ = layer
    monkeypatch.setattr(vectors, "NEAR", 2 * G.shape[1] + 1)
    assert vectors.rows_at_once(G) == 2  # the premise: 7 rows make four parts
    weights, bias = G[:, : 12 - 4 * basis.has_bias], G[:, 12 - 4 * basis.has_bias :]
    Q_S, Q_A = basis.Q_S.numpy(), basis.Q_A.numpy()
    total = np.zeros((4, 3))
    for w, b in zip(weights.numpy(), bias.numpy(), strict=True):
        total += (Q_S.T @ np.column_stack([w.reshape(4, -1), *b.reshape(-1, 4)]) @ Q_A) ** 2
    assert_close(basis.squares(G), torch.from_numpy(total))


def test_factors_at_the_moments_change_nothing(layer):
    basis, G, (A, S) = layer
    scaled = Eigenbasis.of(1e6 * A, 1e-3 * S, has_bias=basis.has_bias)
    found = [solved(Ekfac(b).times, G, G, 0.1)[0] for b in (basis, scaled)]
    assert_close(*found)


def test_rotating_back_and_forth_keeps_vectors_and_their_length(layer):
    basis, G, _ = layer
    assert_close(basis.rotate_back(basis.rotate(G)), G)
    assert_close(basis.rotate(G).flatten(1).norm(dim=1), G.norm(dim=1))


def test_the_bias_stands_behind_the_weight():
    """Negative control: taken for a weight of one more input, other influences follow."""
    A, S = moments(4, 3)
    G = random(1, 7, 12)
    right = kronecker.ekfac_matrix(G, 0.1, A.numpy(), S.numpy(), has_bias=True)
    wrong, _ = solved(Ekfac(Eigenbasis.of(A, S, has_bias=False)).times, G, G, 0.1)
    with pytest.raises(AssertionError):
        assert_close(wrong, G @ right, 1e-3)


def test_where_the_curvature_is_a_kronecker_product_it_is_the_exact_inverse():
    """One token a sample, and a sample for each pair of an input and an output gradient.

    Then the mean of (g gᵀ) ⊗ (x xᵀ) is that of g gᵀ times that of x xᵀ.
    """
    xs, gs = random(1, 6, 3), random(2, 5, 4)
    G = torch.stack([torch.outer(g, x).flatten() for g in gs for x in xs])
    basis = Eigenbasis.of(xs.T @ xs, gs.T @ gs, has_bias=False)
    V = random(3, 4, 12)
    found, _ = solved(Ekfac(basis).times, G, V, 0.05)
    assert_close(found, V @ dense.exact_matrix(G, 0.05))
    other, _ = solved(Ekfac(basis).times, G[1:], V, 0.05)  # negative control: a pair is missing
    with pytest.raises(AssertionError):
        assert_close(other, V @ dense.exact_matrix(G[1:], 0.05), 1e-4)


def test_inverses_are_symmetric_with_eigenvalues_of_at_most_one_over_damping(layer):
    basis, G, _ = layer
    inverse, _ = solved(Ekfac(basis).times, G, torch.eye(12).double(), 0.1)
    assert_close(inverse, inverse.T)
    values = np.linalg.eigvalsh(inverse.numpy())
    assert values.min() > 0
    assert values.max() <= 10 * (1 + 1e-9)


def test_of_several_blocks_the_exact_inverse_counts_where_it_is_taken(layer):
    """n = 1,000: a layer of 500 parameters, and other blocks of at most 20."""
    in_layer = Ekfac(layer[0]).bytes(1000, 5, 500)
    assert in_layer == 8 * (4 * 5 * 500 + 500)
    assert Ekfac().bytes(1000, 5, 500) == EXACT.bytes(1000, 5, 500) > in_layer
    assert Ekfac(exact_width=20).bytes(1000, 5, 500) == in_layer > EXACT.bytes(1000, 5, 20)
    assert Ekfac(exact_width=400).bytes(1000, 5, 500) == EXACT.bytes(1000, 5, 400) > in_layer
    assert Ekfac(exact_width=20) == Ekfac()


def test_rows_that_are_computed_again_are_refused_with_a_remedy():
    with pytest.raises(SourceError, match='Use rows="memory"'):
        Ekfac().check_rows("recompute")
