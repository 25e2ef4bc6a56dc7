"""On which devices the layers of a model lie."""

import torch
from torch import nn


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices of a model's parameters: first the one that batches go to and rows come to.

    Where layers are spread over several, a batch enters where the first parameter is, each layer's
    rows are computed where the layer is, and all are brought to the first device.

    Args:
        model: any with parameters.

    Returns:
        Each device once.
    """
    return list(dict.fromkeys(p.device for p in model.parameters()))
