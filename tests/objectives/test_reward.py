"""The loss of reward models, against its formula, pair by pair."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dense
from pydvl_datainf import DataInfInfluence, ObjectiveError, Reward


class Scorer(nn.Module):
    """A reward of the tokens that a mask leaves."""

    def __init__(self, outputs=1):
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, input_ids, attention_mask):
        kept = attention_mask[..., None].to(self.words.weight)
        seen = (self.words(input_ids) * kept).sum(1) / kept.sum(1)
        return SimpleNamespace(logits=self.head(torch.tanh(seen)))


def pairs(count, **more):
    torch.manual_seed(3)
    batch = {}
    for side, length in (("chosen", 5), ("rejected", 7)):
        batch[f"{side}_input_ids"] = torch.randint(0, 11, (count, length))
        lengths = torch.arange(count)[:, None] % 3 + 2
        batch[f"{side}_attention_mask"] = (torch.arange(length) < lengths).long()
    return batch | more


def formula(model, pair):
    chosen, rejected = (
        model(pair[f"{side}_input_ids"], pair[f"{side}_attention_mask"]).logits.squeeze()
        for side in ("chosen", "rejected")
    )
    return torch.log(1 + torch.exp(rejected - chosen + pair.get("margin", torch.zeros(1))[0]))


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return Scorer().double().eval()


@pytest.mark.parametrize("more", [{}, {"margin": torch.tensor([0.0, 0.5, 2.0, 1.0]).double()}])
def test_losses_and_gradients_are_those_of_the_formula(scorer, more):
    batch = pairs(4, **more)
    influence = DataInfInfluence(scorer, Reward(), block_structure="full")
    expected = torch.stack(dense.sample_losses(scorer, formula, batch))
    torch.testing.assert_close(Reward().losses(scorer, batch), expected, rtol=1e-9, atol=1e-12)
    rows = dense.gradients(scorer, formula, batch, list(influence.blocks.shapes))
    torch.testing.assert_close(influence.loss_gradients(batch), rows, rtol=1e-9, atol=1e-12)
    assert rows.norm(dim=1).min() > 1e-3


def test_a_margin_is_not_ignored(scorer):
    apart = Reward().losses(scorer, pairs(4, margin=torch.ones(4)))
    assert (apart - Reward().losses(scorer, pairs(4))).min() > 0.1


def test_what_is_no_pair_or_no_reward_is_refused(scorer):
    with pytest.raises(ObjectiveError, match=r"'chosen_input_ids', got \['input_ids'\]"):
        Reward().losses(scorer, {"input_ids": torch.zeros(2, 3)})
    with pytest.raises(ObjectiveError, match=r"an \(x, y\) pair"):
        Reward().losses(scorer, (torch.zeros(2, 3), torch.zeros(2)))
    with pytest.raises(
        ObjectiveError, match=r"one output for each text.*got \(4, 2\).*num_labels=1"
    ):
        Reward().losses(Scorer(2), pairs(4))
