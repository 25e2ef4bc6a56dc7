"""Checksums of whatever tensors a model or a batch may hold."""

import numpy as np
import pytest
import torch

import tiny
from pydvl_datainf import CausalLM, DataInfInfluence, ModelError
from pydvl_datainf.fingerprint import DataChecksum, as_bytes, fingerprint

NUMBERS = torch.arange(60.0).reshape(6, 10)
COMPLEX = torch.complex(NUMBERS, 2 * NUMBERS)
TENSORS = {
    "contiguous": NUMBERS,
    "one entry of a column": NUMBERS[2:3, 5],
    "one entry in three dimensions": NUMBERS[2:3, None, 5:6],
    "a column": NUMBERS[:, 5],
    "transposed": NUMBERS.T,
    "empty": NUMBERS[:0],
    "without dimensions": NUMBERS[3, 4],
    "expanded": NUMBERS[:1, :1].expand(4, 3),
    "conjugated": COMPLEX.conj(),
    "negated": COMPLEX.conj().imag,
    "truth values": NUMBERS[:, 1] > 20,
    "half precision": NUMBERS[1:2, 3].half(),
    "unsigned": NUMBERS[:, 3].to(torch.uint64),
    "sparse": NUMBERS.to_sparse(),
    "a parameter": torch.nn.Parameter(NUMBERS[2:3, 5]),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_bytes_of_a_tensor_are_those_of_its_values_in_order(tensor):
    values = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    expected = np.array(values.tolist(), dtype=values.resolve_conj().resolve_neg().numpy().dtype)
    assert bytes(as_bytes(tensor)) == expected.tobytes()


def test_a_last_batch_of_one_column_counts_like_the_rest():
    """Premise: a batch of one cut out of a table has a stride that is not 1."""
    column = NUMBERS[:, 5]
    assert column[5:].stride() == (10,)
    checksums = [DataChecksum() for _ in range(2)]
    for start, stop in ((0, 5), (5, 6)):
        checksums[0].add({"x": column[start:stop]})
    checksums[1].add({"x": column})
    assert checksums[0].sums == checksums[1].sums


def rescale(model, scale):
    layers = [m for m in model.modules() if hasattr(m, "set_scale")]
    for layer in layers:
        layer.set_scale("default", scale)
    return len(layers)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_scale_of_adapters_that_is_not_that_of_their_configuration_tells(settings):
    """As diffusers sets it by the weights of adapters, and not among parameters and buffers."""
    model = tiny.lora(tiny.llama(), ["q_proj", "v_proj"], **settings)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = fingerprint(model)
    assert before.keys() == tensors.keys()  # so that runs are those that they were
    assert rescale(model, 0.5) == 4
    half = fingerprint(model)
    rescale(model, 0.25)
    quarter = fingerprint(model)
    names = half.keys() - before.keys()
    assert len(names) == 4
    assert all(half[name] != quarter[name] for name in names)
    assert {name: half[name] for name in before} == before
    rescale(model, 1.0 + 1e-15)  # as rounding leaves it
    assert fingerprint(model) == before


def test_the_scale_of_an_adapter_that_is_not_active_does_not_tell():
    model = tiny.lora(tiny.llama(), ["q_proj"])
    model.add_adapter("other", model.peft_config["default"])
    before = fingerprint(model)
    for layer in (m for m in model.modules() if hasattr(m, "set_scale")):
        layer.set_scale("other", 0.5)
    assert fingerprint(model) == before


def test_a_scale_that_changed_after_fit_is_noticed():
    model, batch = tiny.moved(tiny.lora(tiny.llama(), ["q_proj"])).eval(), tiny.answers(4, 8)
    influence = DataInfInfluence(model, CausalLM()).fit([batch])
    rescale(model, 0.5)
    with pytest.raises(ModelError, match=r"changed after fit .*scaling\.default"):
        influence.training_influences(batch)
