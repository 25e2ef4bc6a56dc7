"""Influences from rows that side bases make small, against formulas in the whole space."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from fitted import close
from pydvl_datainf import (
    AdamPreconditioner,
    CausalLM,
    DataInfInfluence,
    ExactInfluence,
    NonFiniteError,
    SequenceClassification,
    SourceError,
)
from pydvl_datainf.gradients import sided
from stored_transposed import transposed
from wide_layers import (
    LARGE,
    RANK,
    SAMPLE,
    SHARE,
    TOKENS,
    Bare,
    Late,
    N,
    Rooted,
    batches,
    directions,
    influences,
    problem,
)


def fitted(model, train, kind=ExactInfluence, **settings):
    told = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "sides": SHARE}
    return kind(model, F.cross_entropy, **told | settings).fit(batches(*train))


@pytest.fixture
def from_tokens(monkeypatch):
    """Notes the tokens of each sample in batches whose small rows are made from these."""
    seen, norms = [], sided.norms_of_tokens
    monkeypatch.setattr(
        sided, "norms_of_tokens", lambda e, x: seen.append(len(e[0])) or norms(e, x)
    )
    return seen


@pytest.mark.parametrize("kind", [ExactInfluence, DataInfInfluence])
def test_influences_are_those_of_the_composed_bases(kind, from_tokens):
    model, train, test, rows, tests = problem()
    influence, bases = fitted(model, train, kind), directions(model, rows)
    expected = influences(kind, rows, tests, bases)
    close(influence.training_influences(*test), expected)
    assert {1, TOKENS, 2 * TOKENS, 3} <= set(from_tokens)  # premise: one layer is called twice
    close(influence.influences(*test, *train), expected)
    factors = influence.influence_factors(*test)  # whole again
    close(influence.influences_from_factors(factors, *train), expected)
    widths = {"tokens.layer": (6, 5), "tokens.plain": (5, 6), "image": (4, 5), "head": (2, 10)}
    assert influence.side_widths == widths
    assert set(influence.ranks.values()) == {RANK}


def test_rows_norms_damping_and_energy(from_tokens):
    model, train, _, rows, _ = problem()
    influence, bases = fitted(model, train), directions(model, rows)
    found = list(influence.training_gradients_by_block())
    assert from_tokens  # premise
    for block, g in rows.items():
        B = bases[block]
        close(B @ B.T, torch.eye(RANK, dtype=B.dtype))  # premise
        close(torch.cat([chunk[block] for chunk in found]), g @ B.T @ B)
        share = (g @ B.T).square().sum() / g.square().sum()
        assert 0.1 < share < 0.98  # premise
        assert influence.energy[block] == pytest.approx(float(share), rel=1e-9)
        assert influence.damping[block] == pytest.approx(
            float(dense.automatic_damping(g)), rel=1e-9
        )


def test_other_sides_are_told_apart():
    """Negative control."""
    model, train, test, rows, tests = problem()
    found = fitted(model, train).training_influences(*test)
    for other in (directions(model, rows, 0.4), directions(model, rows, 1.0)):
        with pytest.raises(AssertionError):
            close(found, influences(ExactInfluence, rows, tests, other), 1e-3)


@pytest.mark.parametrize(("kind", "is_late"), [(Bare, False), (Late, True)])
def test_what_tokens_do_not_tell_comes_from_whole_rows(kind, is_late, from_tokens):
    model, train, test, rows, tests = problem(kind)
    found = fitted(model, train).training_influences(*test)
    assert bool(from_tokens) == is_late  # premise
    close(found, influences(ExactInfluence, rows, tests, directions(model, rows)))


@pytest.mark.parametrize("settings", [{}, {"gradients": "functional"}])
def test_weights_that_are_stored_transposed(settings, from_tokens):
    """Against the formulas of the model whose weights are not: numbers have another order."""
    model, train, test, rows, tests = problem()
    influence = fitted(transposed(model), train, **settings)
    assert influence.side_widths["tokens.layer"] == (5, 6)  # of 9 inputs and a bias, 12 outputs
    assert influence.side_widths["head"] == (10, 2)
    assert bool(from_tokens) != bool(settings)  # premise
    expected = influences(ExactInfluence, rows, tests, directions(model, rows))
    close(influence.training_influences(*test), expected)
    close(influence.influences(*test, *train), expected)


def test_layers_of_gpt2_get_side_bases(from_tokens):
    torch.manual_seed(0)
    model, batch = tiny.gpt2().double().eval(), tiny.answers(9, 8)
    names = [name for name, _ in model.named_parameters() if ".c_" in name]
    structure = {name.removesuffix(".weight"): [name] for name in names if "weight" in name}
    told = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "sides": SHARE}
    kinds = ({"batch_size": 1}, {})
    whole, tokens = (
        ExactInfluence(model, CausalLM(), block_structure=structure, **told, **kind).fit([batch])
        for kind in kinds
    )
    assert tokens.side_widths.keys() == structure.keys()
    query = {name: values[:3] for name, values in batch.items()}
    close(tokens.training_influences(query), whole.training_influences(query))
    assert from_tokens  # premise


@pytest.mark.parametrize("settings", [{"gradients": "functional"}, {"batch_size": 1}])
def test_rows_that_are_computed_otherwise(settings, from_tokens):
    model, train, test, rows, tests = problem()
    found = fitted(model, train, **settings).training_influences(*test)
    assert not from_tokens
    close(found, influences(ExactInfluence, rows, tests, directions(model, rows)))


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 9).requires_grad_(False)
        self.layer, self.head = nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, input_ids, attention_mask):
        states = torch.tanh(self.layer(self.embedding(input_ids))) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(states.sum(1)))


def test_texts_by_length(from_tokens):
    torch.manual_seed(0)
    model, lengths = Texts().double(), torch.tensor([5, 2, 4, 3, 5, 1] * 5)
    mask = (torch.arange(5) < lengths[:, None]).long()
    columns = {"input_ids": torch.randint(1, 20, mask.shape) * mask, "attention_mask": mask}
    columns["labels"] = torch.randint(0, 3, (len(mask),))
    texts = [{name: t[i : i + 6] for name, t in columns.items()} for i in range(0, 30, 6)]
    told = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "sides": SHARE}
    kinds = ({"gradients": "functional"}, {"max_tokens": 15})
    whole, pieces = (
        ExactInfluence(model, SequenceClassification(), **told, **kind).fit(texts) for kind in kinds
    )
    assert from_tokens  # premise: of the second
    close(pieces.training_influences(texts[0]), whole.training_influences(texts[0]))


class RootedTexts(Texts):
    """The gradient of one text is not finite, and all losses are."""

    def forward(self, input_ids, attention_mask):
        logits = super().forward(input_ids, attention_mask).logits
        chosen = (input_ids == 19).any(1, keepdim=True)
        return SimpleNamespace(logits=logits + torch.where(chosen, 0 * logits, 1.0).sqrt())


def test_a_text_whose_gradient_is_not_finite_is_named_by_its_place():
    torch.manual_seed(0)
    lengths = torch.tensor([1, 5, 3, 2])
    mask = (torch.arange(5) < lengths[:, None]).long()
    ids = torch.randint(1, 19, mask.shape) * mask
    ids[3, 0] = 19
    texts = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}
    told = {"rows": "compressed", "rank": RANK, "sides": SHARE, "max_tokens": 6}
    influence = ExactInfluence(RootedTexts().double(), SequenceClassification(), **told)
    with pytest.raises(NonFiniteError, match=r"^Sample 3 of the batch") as raised:
        influence.fit([texts])
    assert raised.value.sample == 3


def test_one_sample_and_more_queries():
    model, train, test, rows, tests = problem(n=1)
    assert len(test[0]) > len(train[0])
    found = fitted(model, train).training_influences(*test)
    close(found, influences(ExactInfluence, rows, tests, directions(model, rows)))


@pytest.mark.parametrize("seed", [0, 3])
def test_gradients_that_are_not_finite_are_refused(seed):
    model, train, *_ = problem(Rooted)
    is_learned_from = LARGE in train[0][np.random.default_rng(seed).permutation(N)[:SAMPLE], 0, 0]
    assert is_learned_from == (seed == 3)  # premise
    with pytest.raises(NonFiniteError, match="is not finite in block '"):
        fitted(model, train, basis_seed=seed)


def test_coordinates_of_adam():
    """Whole rows are scaled before they are made small."""
    model, train, test, rows, tests = problem()
    scales = {name: torch.rand_like(p.detach()) + 0.5 for name, p in model.named_parameters()}
    found = fitted(model, train, preconditioner=AdamPreconditioner(scales, 1))
    by_block = {}
    for name, scale in scales.items():
        by_block.setdefault(name.rpartition(".")[0], []).append(scale.flatten())
    flat = {block: torch.cat(parts) for block, parts in by_block.items()}
    rows, tests = ({b: g * flat[b] for b, g in side.items()} for side in (rows, tests))
    expected = influences(ExactInfluence, rows, tests, directions(model, rows))
    close(found.training_influences(*test), expected)


def test_layers_that_are_too_small_do_without():
    model, train, test, *_ = problem()
    few = fitted(model, train, rank=31, basis_sample=None)  # more than 6 x 5 numbers
    assert few.side_widths == {}
    without = fitted(model, train, rank=31, basis_sample=None, sides=None)
    assert torch.equal(few.training_influences(*test), without.training_influences(*test))


@pytest.mark.parametrize("sides", [0.0, 1.0, -0.5, float("nan")])
def test_shares_that_are_none_are_refused(sides):
    with pytest.raises(SourceError, match=r"^sides must be a number between 0 and 1, got "):
        fitted(*problem()[:2], sides=sides)


def test_what_does_not_go_together_is_refused():
    model, train, *_ = problem()
    with pytest.raises(SourceError, match='rank="auto" looks at the energy of whole rows'):
        fitted(model, train, rank="auto")
    with pytest.raises(SourceError, match=r"^sides are those of compressed rows"):
        ExactInfluence(model, F.cross_entropy, sides=SHARE)
