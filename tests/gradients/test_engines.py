"""Gradient engines: a contract for all of them, on texts of unequal length.

Layers of every type are in test_gradients.py, for the engines that know layers.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import ModelError, NonFiniteError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.padding import PaddingCheckEngine

LENGTHS = [3, 7, 2, 7, 4, 1, 5]


class Texts(nn.Module):
    """A classifier of texts that ignores padding, with a mode, buffers, and a way to break down."""

    def __init__(self, tied=False):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight if tied else self.out.weight
        self.fails = False

    def forward(self, ids, mask):
        h = torch.tanh(self.hidden(self.embedding(ids))) * mask.unsqueeze(-1)
        if self.fails:
            raise RuntimeError("the model broke down")
        return self.out(self.drop(self.norm(h.sum(1) / mask.sum(1, keepdim=True))))


class TextLoss:
    """The cross-entropy of each text times a number of its own, through a function."""

    def __init__(self, function=lambda loss: loss):
        self.function = function

    def losses(self, model, batch):
        out = model(batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(out, batch["classes"], reduction="none")
        return self.function(batch["scale"] * loss)


def built(**settings):
    torch.manual_seed(4)
    model = Texts(**settings).double().eval()
    for tensor in (*model.parameters(), *model.norm.buffers()):
        tensor.data = tensor.data + 0.3 * torch.rand(tensor.shape).to(tensor)
    return model


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, 6, mask.shape, generator=generator)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "classes": torch.randint(0, 6, (len(mask),), generator=generator),
        "scale": 0.5 + torch.rand(len(mask), generator=generator, dtype=torch.float64),
    }


def state_of(model):
    """Everything that a call must leave as it was."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    kinds += ("forward_hooks_with_kwargs", "forward_pre_hooks_with_kwargs")
    hooks = [list(getattr(m, f"_{kind}")) for m in model.modules() for kind in kinds]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    tensors = [t.clone() for t in model.state_dict().values()]
    return hooks, grads, modes, needs, tensors, torch.get_rng_state()


def assert_same_state(before, after):
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)
    torch.testing.assert_close(before[4:], after[4:], rtol=0, atol=0)
    assert (before[0], before[2], before[3]) == (after[0], after[2], after[3])


class GradientEngineContract:
    """Subclasses define `engine(model, objective, blocks)`."""

    def rows(self, model, batch, structure="module", objective=None):
        blocks = Blocks.from_model(model, structure)
        return self.engine(model, objective or TextLoss(), blocks).rows(batch)

    def assert_exact(self, rows, model, batch, structure="module"):
        """Compares with one backward pass per sample: blocks, their order, and each entry."""
        members = Blocks.from_model(model, structure).members
        assert list(rows) == list(members)
        for block, names in members.items():
            expected = dense.gradients(model, TextLoss().losses, batch, names)
            assert expected.abs().max() > 0
            assert rows[block].dtype == torch.float64
            assert not rows[block].requires_grad
            torch.testing.assert_close(rows[block], expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("structure", ["module", "full", "parameter_wise"])
    @pytest.mark.parametrize("n", [1, 2, 7])
    @pytest.mark.parametrize("tied", [False, True])
    def test_rows_are_those_of_one_backward_pass_per_sample(self, tied, n, structure):
        model, batch = built(tied=tied), texts(LENGTHS[:n])
        self.assert_exact(self.rows(model, batch, structure), model, batch, structure)

    def test_later_batches_of_other_sizes_are_as_right(self):
        model = built()
        engine = self.engine(model, TextLoss(), Blocks.from_model(model, "module"))
        for seed, lengths in enumerate(([2, 5], LENGTHS, [4], [3, 3, 1, 8])):
            batch = texts(lengths, seed)
            self.assert_exact(engine.rows(batch), model, batch)

    def test_rows_follow_the_order_of_the_samples(self):
        model, batch = built(), texts(LENGTHS)
        turned = torch.tensor([4, 0, 6, 2, 1, 5, 3])
        rows = self.rows(model, batch)
        moved = self.rows(model, {name: tensor[turned] for name, tensor in batch.items()})
        for block, expected in rows.items():
            torch.testing.assert_close(moved[block], expected[turned], rtol=1e-9, atol=1e-12)
            assert not torch.allclose(moved[block], expected)  # the control

    def test_frozen_parameters_have_no_rows(self):
        model, batch = built(), texts(LENGTHS)
        for parameter in (model.embedding.weight, model.hidden.bias, *model.norm.parameters()):
            parameter.requires_grad_(False)
        rows = self.rows(model, batch)
        self.assert_exact(rows, model, batch)
        assert {block: v.shape[1] for block, v in rows.items()} == {"hidden": 16, "out": 24}

    def test_blocks_may_leave_parameters_out(self):
        model, batch = built(), texts(LENGTHS)
        structure = {"b": ["out.weight"], "a": ["hidden.bias", "norm.weight"]}
        self.assert_exact(self.rows(model, batch, structure), model, batch, structure)

    @pytest.mark.parametrize(("scale", "what"), [(float("inf"), "loss"), (0.0, "gradient")])
    @pytest.mark.parametrize("sample", [0, 3, 6])
    def test_samples_that_are_not_finite_are_named(self, sample, scale, what):
        """The square root of zero is finite, and its derivative is not."""
        model, batch = built(), texts(LENGTHS)
        batch["scale"][sample] = scale
        with pytest.raises(NonFiniteError, match=f"{what} of sample .* of a batch is") as caught:
            self.rows(model, batch, objective=TextLoss(torch.sqrt))
        assert caught.value.sample == sample
        assert f"ample {sample} of" in str(caught.value)

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_model_and_the_random_state_are_left_as_they_were(self, fails):
        model, batch = built(), texts(LENGTHS)
        model.hidden.train()  # a mixed mode
        model.hidden.register_forward_hook(lambda module, args, output: output)
        model.out.weight.requires_grad_(False)
        TextLoss().losses(model, batch).sum().backward()
        given = {name: tensor.clone() for name, tensor in batch.items()}
        model.fails, before = fails, state_of(model)
        refused = pytest.raises((RuntimeError, ModelError), match="the model broke down")
        with refused if fails else contextlib.nullcontext():
            self.rows(model, batch)
        assert_same_state(before, state_of(model))
        torch.testing.assert_close(batch, given, rtol=0, atol=0)

    def test_gradients_may_be_switched_off_outside(self):
        model, batch = built(), texts(LENGTHS)
        with torch.no_grad():
            rows = self.rows(model, batch)
        self.assert_exact(rows, model, batch)

    def test_models_that_draw_at_random_are_refused(self):
        model = built()
        model.drop.train()
        with pytest.raises(ModelError, match="'drop' is dropout in training mode"):
            self.rows(model, texts(LENGTHS))


class TestCapture(GradientEngineContract):
    def engine(self, model, objective, blocks):
        return CaptureEngine(model, objective, blocks, strict=True)


class TestFunctional(GradientEngineContract):
    def engine(self, model, objective, blocks):
        return FunctionalEngine(model, objective, blocks)


class TestByLength(GradientEngineContract):
    """Premise: of seven texts it makes several pieces, in another order than theirs."""

    def engine(self, model, objective, blocks):
        return ByLengthEngine(CaptureEngine(model, objective, blocks), max_tokens=10)


class TestPaddingCheck(GradientEngineContract):
    def engine(self, model, objective, blocks):
        return PaddingCheckEngine(CaptureEngine(model, objective, blocks), model)
