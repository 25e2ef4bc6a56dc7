"""Values from compressed rows: those of coordinates, here and in a store."""

import numpy as np
import pytest
import torch
from pydvl.valuation.dataset import Dataset
from torch.nn import functional as F

import dense
from pydvl_datainf import DataInfInfluence, ExactInfluence, HessianFreeInfluence
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.valuation import DataInfValuation
from small_runs import close
from valued import BLOCKS, TEST, TRAIN, N, network, oracle_rows

RANK, SAMPLE, SEED = 3, 7, 2
ASKED = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "basis_seed": SEED}


def values(influence, **settings):
    return DataInfValuation(influence, Dataset(*TEST), **settings).fit(Dataset(*TRAIN)).result


def expected(kind):
    V, G = (oracle_rows(network(), F.cross_entropy, BLOCKS, side) for side in (TEST, TRAIN))
    chosen, total = np.random.default_rng(SEED).permutation(N)[:SAMPLE], 0
    for block, g in G.items():
        directions = np.linalg.svd(g[chosen].numpy(), full_matrices=False)[2][:RANK]
        P = torch.from_numpy(directions.T @ directions)
        parts, λ = g @ P, dense.automatic_damping(g)
        weights = 1 / (λ + g.square().sum(1))
        eye = torch.eye(len(P)).double()
        inverse = {
            DataInfInfluence: (eye - torch.einsum("i,ia,ib->ab", weights, parts, parts) / N) / λ,
            ExactInfluence: dense.exact_matrix(parts, λ),
            HessianFreeInfluence: eye,
        }[kind]
        total = total + V[block] @ P @ inverse @ parts.T
    return total.mean(0).numpy()


@pytest.mark.parametrize("kind", [DataInfInfluence, ExactInfluence, HessianFreeInfluence])
def test_a_store_and_this_process_value_alike(tmp_path, kind):
    influence = kind(network(), F.cross_entropy, **ASKED)
    close(values(influence).values, expected(kind))
    close(values(influence, store=tmp_path / "run.zarr").values, expected(kind), 2e-3)
    assert InfluenceRun(tmp_path / "run.zarr").energy is not None
    whole = values(kind(network(), F.cross_entropy)).values
    with pytest.raises(AssertionError):  # premise: compression changes them
        close(whole, expected(kind), 2e-2)
