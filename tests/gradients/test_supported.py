"""Models that are spread over devices or processes, or whose weights are elsewhere."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import distributed, nn
from torch.distributed import fsdp, tensor
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, ModelError


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def refuse(model, match):
    with pytest.raises(ModelError, match=match):
        DataInfInfluence(model, F.mse_loss)


def on_disk(model, folder):
    return disk_offload(model, folder, execution_device="cpu")


def in_main_memory(model, _):
    return cpu_offload(model, execution_device="cpu")


@pytest.mark.parametrize("offload", [in_main_memory, on_disk])
def test_weights_that_are_fetched_for_each_pass_are_refused(offload, tmp_path):
    model = offload(network(), tmp_path)
    assert model(torch.ones(1, 3)).shape == (1, 2)  # the premise: it works
    refuse(model, r"4 parameters .* \(0.weight first\).* cards alone")


def test_weights_that_were_never_loaded_are_refused():
    model = network()
    model[2].to("meta")
    refuse(model, r"2 parameters .* \(2.weight first\)")


@pytest.fixture(scope="module")
def group():
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_models_are_refused(group):
    match = "sharded .* load it with a device_map"
    refuse(fsdp.fully_shard(network(), mesh=group), match)
    model = network()
    model[0].weight = nn.Parameter(tensor.distribute_tensor(model[0].weight.detach(), group))
    refuse(model, "'0.weight' of the model is " + match)


def test_zero_3_is_refused_by_its_marks():
    model = network()
    model[2].bias.ds_id = 3  # as DeepSpeed marks what it shards
    refuse(model, "'2.bias' of the model is sharded")


def test_wrappers_for_several_cards_are_to_be_taken_off():
    refuse(nn.DataParallel(network()), "wrapped in DataParallel. Pass model.module")
