"""Names of blocks, whatever their characters, come back from a store."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import M, N, loader, run, samples


class Direct(nn.Module):
    """A model that owns a parameter itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.layer(x)) * self.scale


@pytest.mark.filterwarnings("ignore:One backward pass per sample")
@pytest.mark.parametrize(
    ("structure", "names", "rows"),
    [
        ("module", ["", "layer"], "memory"),
        ({"a/b": ["layer.weight"], "a": ["layer.bias", "scale"]}, ["a/b", "a"], "zarr"),
        ({"": ["layer.bias"], "ü .. c/0 ": ["layer.weight"]}, ["", "ü .. c/0 "], "memory"),
    ],
)
def test_any_name_of_a_block_comes_back(tmp_path, structure, names, rows):
    influence = DataInfInfluence(Direct(), F.cross_entropy, {names[0]: 0.5}, structure)
    done = run(tmp_path / "run.zarr", influence=influence, by_block=True, rows=rows)
    done.check()
    assert run(tmp_path / "run.zarr", influence=influence, by_block=True, rows=rows).is_complete
    influence.fit(loader(samples(N, 1), 5))
    assert list(InfluenceRun(tmp_path / "run.zarr").damping) == sorted(names, key=names.index)
    assert done.damping == pytest.approx(influence.damping, rel=1e-6)
    assert done.damping[names[0]] == 0.5
    expected = influence.influences_by_block(*samples(M, 2), *samples(N, 1))
    for i, name in enumerate(done.damping):
        scores = expected[name].numpy()
        atol = {"memory": 1e-5, "zarr": 3e-3}[rows] * np.abs(scores).max()
        np.testing.assert_allclose(done.scores[:, i], scores, rtol=0, atol=atol, err_msg=name)
