"""Rows from pieces of like length are those of the whole batch, in its order."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pydvl_datainf import (
    BatchError,
    CausalLM,
    DataInfInfluence,
    NonFiniteError,
    ObjectiveError,
    Preference,
)
from pydvl_datainf.gradients.by_length import ByLengthEngine, pieces_by_length

LENGTHS = torch.tensor([3, 9, 4, 9, 2, 5, 12])


def batch_of(lengths, columns):
    """Right-padded token ids, whose labels leave out the first token and the padding."""
    mask = (torch.arange(columns) < lengths[:, None]).long()
    ids = torch.randint(1, 40, mask.shape) * mask
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture
def llama():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).double().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name or "v_proj" in name)
    return model


class Widths:
    """An engine that tells the shapes that it was given, and each sample's first token."""

    def __init__(self):
        self.shapes = []

    def rows(self, batch):
        self.shapes.append(tuple(batch["input_ids"].shape))
        return {"block": batch["input_ids"][:, :1].double()}


@pytest.mark.parametrize(
    ("budget", "shapes"),
    [
        (24, [(2, 12), (2, 9), (3, 4)]),
        (18, [(1, 12), (2, 9), (3, 5), (1, 2)]),
        (1, [(1, 12), (1, 9), (1, 9), (1, 5), (1, 4), (1, 3), (1, 2)]),
        (10**6, [(7, 12)]),
    ],
)
def test_pieces_hold_at_most_so_many_tokens_and_no_common_padding(budget, shapes):
    batch, engine = batch_of(LENGTHS, columns=15), Widths()
    rows = ByLengthEngine(engine, budget).rows(batch)["block"]
    assert engine.shapes == shapes
    assert rows[:, 0].tolist() == batch["input_ids"][:, 0].tolist()


@pytest.mark.parametrize("budget", [1, 20, 40, 1000])
def test_scores_do_not_depend_on_the_budget(llama, budget):
    train = [batch_of(LENGTHS, 15), batch_of(LENGTHS[:3], 9)]
    test = batch_of(torch.tensor([6, 3]), 8)
    plain = DataInfInfluence(llama, CausalLM()).fit(train)
    cut = DataInfInfluence(llama, CausalLM(), max_tokens=budget).fit(train)
    expected, scores = (i.training_influences(test) for i in (plain, cut))
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9 * float(expected.std()))
    torch.testing.assert_close(
        cut.self_influences(), plain.self_influences(), rtol=1e-9, atol=1e-12
    )


def test_padding_on_the_left_is_not_cut(llama):
    batch = batch_of(LENGTHS, 15)
    turned = {name: tensor.flip(1) for name, tensor in batch.items()}
    pieces = [piece for _, piece in pieces_by_length(turned, 24)]
    assert {piece["input_ids"].shape[1] for piece in pieces} == {15}


def test_labels_of_another_text_of_the_same_width_are_not_cut():
    batch = batch_of(torch.tensor([2, 3]), 6) | {"labels": torch.arange(12).reshape(2, 6)}
    (_, piece), *_ = pieces_by_length(batch, 1)
    assert piece["labels"].tolist() == [[6, 7, 8, 9, 10, 11]]
    assert piece["input_ids"].shape == (1, 6)


def test_kinds_of_tokens_are_cut_like_the_tokens():
    kinds = {name: torch.ones(2, 6).long() for name in ("token_type_ids", "mm_token_type_ids")}
    (_, piece), *_ = pieces_by_length(batch_of(torch.tensor([2, 3]), 6) | kinds, 1)
    assert {tuple(piece[name].shape) for name in (*kinds, "input_ids")} == {(1, 3)}


def test_other_tensors_are_not_cut():
    batch = batch_of(torch.tensor([2, 3]), 6) | {"features": torch.rand(2, 5)}
    (_, piece), *_ = pieces_by_length(batch, 1)
    assert piece["features"].shape == (1, 5)
    assert piece["input_ids"].shape == (1, 3)


def test_pairs_of_texts_are_cut_on_both_sides(llama):
    short, long = batch_of(LENGTHS, 15), batch_of(LENGTHS.flip(0) + 2, 17)
    pairs = {f"chosen_{k}": v for k, v in short.items()}
    pairs |= {f"rejected_{k}": v for k, v in long.items()}
    reference = torch.randn(2, len(LENGTHS), dtype=torch.float64)
    pairs |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
    pieces = list(pieces_by_length(pairs, 40))
    assert torch.cat([where for where, _ in pieces]).sort().values.tolist() == list(range(7))
    assert len(pieces) > 2
    for where, piece in pieces:
        sides = [piece[f"{side}_input_ids"] for side in ("chosen", "rejected")]
        assert [side.shape[1] for side in sides] == [
            int(LENGTHS[where].max()),
            int(LENGTHS.flip(0)[where].max()) + 2,
        ]
        assert len(where) == 1 or sum(side.numel() for side in sides) <= 40
        assert piece["chosen_labels"].shape == sides[0].shape
    exact = DataInfInfluence(llama, Preference()).loss_gradients(pairs)
    rows = DataInfInfluence(llama, Preference(), max_tokens=40).loss_gradients(pairs)
    torch.testing.assert_close(rows, exact, rtol=1e-9, atol=1e-12)


def test_the_labels_of_a_translation_go_with_the_decoder():
    source, target = batch_of(torch.tensor([2, 3]), 6), batch_of(torch.tensor([4, 1]), 6)
    batch = {
        "input_ids": source["input_ids"],
        "attention_mask": source["attention_mask"],
        "decoder_input_ids": target["input_ids"],
        "decoder_attention_mask": target["attention_mask"],
        "labels": target["labels"],
    }
    ((_, piece),) = pieces_by_length(batch, 100)
    assert {name: tensor.shape[1] for name, tensor in piece.items()} == {
        "input_ids": 3,
        "attention_mask": 3,
        "decoder_input_ids": 4,
        "decoder_attention_mask": 4,
        "labels": 4,
    }
    ((_, piece),) = pieces_by_length(
        {k: v for k, v in batch.items() if k != "decoder_attention_mask"}, 100
    )
    assert (piece["input_ids"].shape[1], piece["labels"].shape[1]) == (3, 6)


def test_labels_may_have_another_name(llama):
    batch = batch_of(LENGTHS, 15)
    named = {"targets" if k == "labels" else k: v for k, v in batch.items()}
    exact = DataInfInfluence(llama, CausalLM()).loss_gradients(batch)
    influence = DataInfInfluence(llama, CausalLM(labels="targets"), max_tokens=20)
    torch.testing.assert_close(influence.loss_gradients(named), exact, rtol=1e-9, atol=1e-12)


def test_a_sample_without_a_loss_is_named_by_its_place_in_the_batch(llama):
    batch = batch_of(LENGTHS, 15)
    batch["labels"][5] = -100
    influence = DataInfInfluence(llama, CausalLM(), max_tokens=15)
    with pytest.raises(ObjectiveError, match=r"sample 0 of .* these are 5, 2, 0 of their batch"):
        influence.loss_gradients(batch)


class NotFinite:
    def rows(self, batch):
        bad = (batch["input_ids"][:, 0] == 0).nonzero()
        if len(bad):
            raise NonFiniteError("it is NaN", int(bad[0]))
        return {"block": torch.zeros(len(batch["input_ids"]), 1)}


def test_a_gradient_that_is_not_finite_is_named_by_its_place_in_the_batch():
    batch = batch_of(LENGTHS, 15)
    batch["input_ids"][5, 0] = 0
    with pytest.raises(NonFiniteError, match="Sample 5 of the batch") as raised:
        ByLengthEngine(NotFinite(), 24).rows(batch)
    assert raised.value.sample == 5


@pytest.mark.parametrize(
    "batch",
    [
        (torch.rand(2, 3), torch.rand(2)),
        {"x": torch.rand(2, 3)},
        {"attention_mask": torch.ones(2)},
    ],
)
def test_batches_without_a_mask_are_refused(batch):
    with pytest.raises(BatchError, match="attention_mask"):
        ByLengthEngine(Widths(), 8).rows(batch)


@pytest.mark.parametrize("budget", [0, -1, 2.5, True])
def test_a_budget_that_is_no_positive_number_is_refused(llama, budget):
    with pytest.raises(BatchError, match="max_tokens"):
        DataInfInfluence(llama, CausalLM(), max_tokens=budget)


def test_a_sample_of_padding_alone_keeps_its_place():
    batch = batch_of(torch.tensor([2, 3, 0]), 6)
    engine = Widths()
    rows = ByLengthEngine(engine, 1).rows(batch)["block"]
    assert rows[2, 0] == 0
    assert engine.shapes == [(1, 3), (1, 2), (1, 1)]


def test_whatever_has_an_entry_for_each_token_is_cut_with_the_tokens():
    """And nothing else: features with as many entries as there are samples stay whole."""
    batch = batch_of(LENGTHS, columns=15)
    by_token = {
        "mm_token_type_ids": torch.randint(0, 3, (7, 15)),
        "bbox": torch.randint(0, 9, (7, 15, 4)),
        "inputs_embeds": torch.randn(7, 15, 15),
        "token_weights": torch.rand(7, 15),
    }
    features = torch.randn(7, 7)
    others = {
        "features": features,
        "patches": torch.randn(7, 15, 4),
        "pixel_values": torch.ones(7, 15),
    }
    for where, piece in pieces_by_length({**batch, **by_token, **others}, 24):
        width = piece["input_ids"].shape[1]
        assert width == LENGTHS[where].max()
        for name, tensor in by_token.items():
            assert torch.equal(piece[name], tensor[where, :width])
        for name, tensor in others.items():
            assert torch.equal(piece[name], tensor[where])


def test_embeddings_in_place_of_ids(llama):
    batch = batch_of(LENGTHS, 15)
    embedded = llama.get_input_embeddings()(batch.pop("input_ids")).detach()
    batch["inputs_embeds"] = embedded
    plain = DataInfInfluence(llama, CausalLM()).fit([batch])
    cut = DataInfInfluence(llama, CausalLM(), max_tokens=20).fit([batch])
    expected, scores = (i.self_influences() for i in (plain, cut))
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=0)
