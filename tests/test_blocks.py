"""Which parameters form which block, and the order of the flat vector."""

import pytest
import torch
from pydvl.influence.torch.util import BlockMode, ModelParameterDictBuilder
from torch import nn

from pydvl_datainf import BlockError
from pydvl_datainf.blocks import Blocks


class Rooted(nn.Module):
    """Parameters at the root, in nested modules, frozen ones, and a tied pair."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.body = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        self.body[2].bias.requires_grad_(False)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight = self.body[2].weight


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def test_module_blocks_tie_parameters_to_their_first_name():
    blocks = Blocks.from_model(Rooted(), "module")
    assert dict(blocks.members) == {
        "": ("scale",),
        "body.0": ("body.0.weight", "body.0.bias"),
        "body.2": ("body.2.weight",),
    }
    assert blocks.widths == {"": 2, "body.0": 9, "body.2": 6}
    assert blocks.n_parameters == 17


@pytest.mark.parametrize("mode", list(BlockMode))
def test_block_modes_mean_what_they_mean_in_pydvl(mode):
    model = Plain()
    theirs = ModelParameterDictBuilder(model).build_from_block_mode(mode)
    for structure in (mode, mode.value):
        ours = Blocks.from_model(model, structure)
        assert {b: list(names) for b, names in ours.members.items()} == {
            b: list(parameters) for b, parameters in theirs.items()
        }


def test_layer_wise_leaves_out_the_parameters_of_the_root():
    assert Blocks.from_model(Rooted(), "layer_wise").names == ("body",)


def test_layer_wise_of_a_model_without_children_is_refused():
    with pytest.raises(BlockError, match=r"leaves no block.*weight, bias"):
        Blocks.from_model(nn.Linear(2, 1), "layer_wise")


def test_a_mapping_may_leave_parameters_out_and_keeps_named_parameters_order():
    blocks = Blocks.from_model(
        Plain(), {"x": ["second.0.bias", "first.weight"], "y": ["first.bias"]}
    )
    assert dict(blocks.members) == {"x": ("first.weight", "second.0.bias"), "y": ("first.bias",)}
    assert list(blocks.shapes) == ["first.weight", "first.bias", "second.0.bias"]


def test_flat_vectors_interleave_blocks_as_named_parameters_does():
    blocks = Blocks.from_model(
        Plain(), {"x": ["second.0.bias", "first.weight"], "y": ["first.bias"]}
    )
    flat = torch.arange(22.0).reshape(2, 11)
    vectors = blocks.unflatten(flat)
    assert torch.equal(vectors["x"][0], torch.tensor([0.0, 1, 2, 3, 4, 5, 9, 10]))
    assert torch.equal(vectors["y"][0], torch.tensor([6.0, 7, 8]))
    assert torch.equal(blocks.flatten(vectors), flat)


def test_gather_joins_parameters_within_blocks():
    blocks = Blocks.from_model(Plain(), "layer_wise")
    rows = {name: torch.randn(2, *shape) for name, shape in blocks.shapes.items()}
    vectors = blocks.gather(rows)
    assert torch.equal(vectors["first"][1, :6], rows["first.weight"][1].flatten())
    assert torch.equal(vectors["second"][1, -1:], rows["second.1.bias"][1])


@pytest.mark.parametrize("flat", [torch.zeros(3, 10), torch.zeros(11)])
def test_vectors_of_another_width_are_refused(flat):
    blocks = Blocks.from_model(Plain(), {"x": ["first.weight", "first.bias", "second.0.bias"]})
    with pytest.raises(BlockError, match=r"\(B, 11\)"):
        blocks.unflatten(flat)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("modules", "Unknown block structure 'modules'"),
        ({}, "empty mapping"),
        ({"a": []}, r"without trainable parameters: \['a'\]"),
        ({"a": ["scale"], "b": ["scale"]}, r"overlap: scale .* \['a', 'b'\]"),
        ({"a": ["scale", "scale"]}, "overlap: scale"),
        ({"a": ["scael"]}, "'scael', which is not a parameter"),
        ({"a": ["head.weight"]}, "tied to 'body.2.weight'"),
        ({"a": "scale"}, "list of parameter names"),
        ({"a": [3]}, "list of parameter names"),
    ],
)
def test_structures_that_do_not_fit_are_refused(structure, message):
    with pytest.raises(BlockError, match=message):
        Blocks.from_model(Rooted(), structure)


def test_frozen_parameters_take_no_part_and_are_named():
    with pytest.warns(UserWarning, match=r"'body.2.bias' of block 'a' is frozen"):
        blocks = Blocks.from_model(Rooted(), {"a": ["scale", "body.2.bias"]})
    assert dict(blocks.members) == {"a": ("scale",)}


def test_a_block_of_frozen_parameters_alone_is_refused():
    with (
        pytest.warns(UserWarning, match="frozen"),
        pytest.raises(BlockError, match=r"without trainable parameters: \['a'\]"),
    ):
        Blocks.from_model(Rooted(), {"a": ["body.2.bias"]})


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(BlockError, match="no trainable parameters"):
        Blocks.from_model(nn.Linear(2, 1).requires_grad_(False), "module")


def test_many_names_are_cut_short():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)])
    with pytest.raises(BlockError, match="and 4 more"):
        Blocks.from_model(model, {"a": ["nothing"]})
