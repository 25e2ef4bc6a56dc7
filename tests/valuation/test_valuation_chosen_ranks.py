"""Values from compressed rows whose ranks are chosen: the same here and in a store."""

import pytest
import torch
from pydvl.valuation.dataset import Dataset
from torch.nn import functional as F

from pydvl_datainf import ExactInfluence
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.valuation import DataInfValuation
from small_runs import close
from valued import TEST, TRAIN, network

ASKED = {"rows": "compressed", "basis_sample": 7}


def values(rank, **settings):
    influence = ExactInfluence(network(), F.cross_entropy, rank=rank, **ASKED)
    found = DataInfValuation(influence, Dataset(*TEST), **settings).fit(Dataset(*TRAIN))
    return found.result.values


def test_a_store_and_this_process_value_alike(tmp_path):
    expected = values("auto")
    close(values("auto", store=tmp_path / "run.zarr"), expected, 2e-3)
    run = InfluenceRun(tmp_path / "run.zarr")
    fitted = ExactInfluence(network(), F.cross_entropy, rank="auto", **ASKED)
    fitted.fit([tuple(map(torch.from_numpy, TRAIN))])
    assert run.ranks == fitted.ranks
    with pytest.raises(AssertionError):  # negative control
        close(values(7), expected, 2e-3)
