"""A run does not keep what EK-FAC needs, and says so before any work."""

import pytest
from torch import nn
from torch.nn import functional as F

from captured import data
from pydvl_datainf import EkfacInfluence, PlanError, run_influences


@pytest.mark.parametrize("is_fitted", [False, True])
def test_runs_refuse_it_with_the_remedies(tmp_path, is_fitted):
    influence, batch = EkfacInfluence(nn.Linear(3, 2).double(), F.mse_loss), data(5, 3)
    made = influence.fit([batch]) if is_fitted else lambda: influence
    with pytest.raises(PlanError, match="Use ExactInfluence or DataInfInfluence in runs"):
        run_influences(made, [batch], [batch], tmp_path / "run.zarr", progress=False)
    assert not (tmp_path / "run.zarr" / "zarr.json").exists()
