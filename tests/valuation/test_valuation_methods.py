"""Values under LiSSA, under a multiple of automatic damping, and under another curvature."""

import numpy as np
import pytest
import torch
from pydvl.valuation.dataset import Dataset
from torch.nn import functional as F

import dense
from pydvl_datainf import DataInfInfluence, ExactInfluence, LissaInfluence
from pydvl_datainf.valuation import DataInfValuation
from small_runs import close
from valued import BLOCKS, TEST, TRAIN, network, oracle_rows


def values(influence):
    return DataInfValuation(influence, Dataset(*TEST)).fit(Dataset(*TRAIN)).result


def expected(scale, inverse):
    V, G = (oracle_rows(network(), F.cross_entropy, BLOCKS, side) for side in (TEST, TRAIN))
    damping = {b: scale * dense.automatic_damping(g) for b, g in G.items()}
    return dense.influences(V, G, G, damping, inverse).numpy().mean(0)


def test_values_under_ten_times_the_damping():
    found = values(DataInfInfluence(network(), F.cross_entropy, damping_scale=10))
    close(found.values, expected(10, dense.datainf_matrix))


def test_values_under_lissa():
    steps = {"iterations": 20_000, "tolerance": 1e-11}
    found = values(LissaInfluence(network(), F.cross_entropy, damping_scale=10, **steps))
    close(found.values, expected(10, dense.exact_matrix), 1e-8)
    assert found.algorithm == "LiSSA"


def test_values_that_are_not_solved_are_warned_of():
    with pytest.warns(UserWarning, match="LiSSA has not converged: after 3 iterations"):
        values(LissaInfluence(network(), F.cross_entropy, iterations=3))


def test_another_curvature_is_taken_here_and_in_a_store(tmp_path):
    influence = ExactInfluence(network(), F.cross_entropy, curvature="gauss-newton")
    train, test = (tuple(map(torch.as_tensor, side)) for side in (TRAIN, TEST))
    scores = influence.unfitted().fit([train]).training_influences(*test).numpy()
    close(values(influence).values, scores.mean(0))
    assert not np.allclose(scores.mean(0), expected(1, dense.exact_matrix), rtol=1e-2)
    stored = DataInfValuation(influence, Dataset(*TEST), store=tmp_path / "values.zarr")
    found = stored.fit(Dataset(*TRAIN)).result.values  # rows in half precision
    np.testing.assert_allclose(found, scores.mean(0), rtol=0, atol=2e-3 * np.abs(scores).max())
