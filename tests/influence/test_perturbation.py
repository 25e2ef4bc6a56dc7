"""How scores change with the inputs of training samples: mode="perturbation"."""

import pytest
import torch
from pydvl.influence.types import InfluenceMode
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fitted import STRUCTURES, B, M, close, datainf_problem
from pydvl_datainf import BatchError, DataInfInfluence, ModelError
from zoo import CASES


@pytest.mark.parametrize("regularization", [1e-3, 1.0, "auto"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_perturbation_influences_are_those_of_the_formula(structure, regularization):
    p = datainf_problem(structure)
    influence = DataInfInfluence(p.model, p.loss, regularization, p.structure, batch_size=4).fit(
        p.cut([4, 4, 3])
    )
    exact = p.perturbations(p.test, p.train, regularization)
    assert exact.shape == (M, B, 3)
    close(influence.influences(*p.test, *p.train, mode="perturbation"), exact)
    close(
        influence.influences(*p.train, *p.test, mode=InfluenceMode.Perturbation),
        p.perturbations(p.train, p.test, regularization),
    )
    factors = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(factors, *p.train, mode="perturbation"), exact)


def test_perturbation_needs_inputs_with_a_derivative():
    case = CASES["embedding"]
    model = case.model()
    data = case.batch(3)
    influence = DataInfInfluence(model, case.loss, 0.1).fit([data])
    with pytest.raises(BatchError, match='mode="up"'):
        influence.influences(*data, mode="perturbation")


def test_perturbation_of_a_loss_that_is_linear_in_the_parameters_and_free_of_x():
    """The gradient does not depend on x, so its derivative by x is zero."""
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    data = torch.randn(4, 3), torch.randn(4, 2)
    influence = DataInfInfluence(model, lambda out, y: out.sum(), 0.1).fit([data])
    scores = influence.influences(*data, mode="perturbation")
    assert torch.equal(scores, torch.zeros(4, 4, 3))


class FusedAttention(nn.Module):
    """Attention by a fused kernel, which has a first derivative only."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        h = self.inner(x).unsqueeze(1)
        return F.scaled_dot_product_attention(h, h, h).mean((1, 2))


def test_layers_that_cannot_be_differentiated_twice_are_named_with_a_remedy():
    torch.manual_seed(0)
    data = torch.randn(3, 5, 4), torch.randn(3, 4)
    influence = DataInfInfluence(FusedAttention(), F.mse_loss, 0.1).fit([data])
    with pytest.raises(ModelError, match="differentiated twice"):
        influence.influences(*data, mode="perturbation")
    with sdpa_kernel(SDPBackend.MATH):
        assert influence.influences(*data, mode="perturbation").shape == (3, 3, 5, 4)
