"""Which λ an influence model uses, and how it is changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fitted import close, datainf_problem
from pydvl_datainf import DampingError, DataInfInfluence


def test_damping_is_what_was_used():
    p = datainf_problem()
    auto = DataInfInfluence(p.model, p.loss).fit([p.fitted])
    assert auto.damping == pytest.approx(p.damping("auto"), rel=1e-12)
    partial = DataInfInfluence(p.model, p.loss, {"2": 3}).fit([p.fitted])
    assert partial.damping == pytest.approx(p.damping("auto") | {"2": 3.0}, rel=1e-12)
    whole = DataInfInfluence(p.model, p.loss, {"2": 3, "0": 2}).fit([p.fitted])
    assert whole.damping == {"0": 2.0, "2": 3.0}


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("first", [0.5, "auto"])
@pytest.mark.parametrize("second", [0.1, "auto", {"0": 0.2}])
def test_with_regularization_equals_a_new_fit(rows, first, second):
    p = datainf_problem()
    changed = DataInfInfluence(p.model, p.loss, first, rows=rows).fit([p.fitted])
    assert changed.with_regularization(second) is changed
    fresh = DataInfInfluence(p.model, p.loss, second, rows=rows).fit([p.fitted])
    assert changed.damping == pytest.approx(fresh.damping, rel=1e-12)
    close(changed.training_influences(*p.test), fresh.training_influences(*p.test))


def test_with_regularization_before_fit_and_when_refused():
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, 0.5).with_regularization(0.1).fit([p.fitted])
    assert influence.damping == {"0": 0.1, "2": 0.1}
    with pytest.raises(DampingError):
        influence.with_regularization({"2": -1.0})
    assert influence.damping == {"0": 0.1, "2": 0.1}


class KeyBias(nn.Module):
    """Attention whose key bias has no influence on the output, but gradients of rounding noise."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        return self.out((scores.softmax(-1) @ x).mean(1))


def test_blocks_of_rounding_noise_are_refused_by_name_and_may_be_given_a_damping():
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 4), torch.randn(6, 2)
    model = KeyBias()
    influence = DataInfInfluence(model, F.mse_loss, block_structure="parameter_wise")
    with pytest.raises(DampingError, match=r"\['key.bias'\]"):
        influence.fit([(x, y)])
    assert not influence.is_fitted
    influence.with_regularization({"key.bias": 1.0}).fit([(x, y)])
    assert influence.damping["key.bias"] == 1.0
