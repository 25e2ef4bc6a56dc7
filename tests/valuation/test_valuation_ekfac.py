"""Values of samples with EK-FAC."""

import torch
from torch.nn import functional as F

from pydvl_datainf import EkfacInfluence
from small_runs import close
from valued import TEST, TRAIN, network, tensors, values_of


def test_values_are_mean_influences_of_the_fitted_model():
    influence = EkfacInfluence(network(), F.cross_entropy)
    result = values_of(influence=influence)
    scores = influence.fit([tensors(TRAIN)]).training_influences(*tensors(TEST))
    close(result.values, torch.mean(scores, 0).numpy())
    assert result.algorithm == "EK-FAC"
