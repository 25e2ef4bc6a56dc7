"""Vision language models: rows of samples with images, and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

import tiny
import vision
from pydvl_datainf import (
    BatchError,
    CausalLM,
    DataInfInfluence,
    ModelError,
    ObjectiveError,
    Preference,
)
from pydvl_datainf.objectives import ImageLayout
from vision import by_patches, in_a_row, sample, whole
from vision_samples import FAMILIES, LANGUAGE, rows_alone, tuned, typed

TOKENS = {"llava": 4, "paligemma": 4, "idefics2": 2}


def image_for(name):
    return by_patches(1, 2, 2) if "qwen" in name else whole(TOKENS.get(name, 1))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_those_of_each_sample_alone(family, side, recwarn):
    model, samples, collate = tuned(family)
    influence = DataInfInfluence(model, CausalLM())
    rows = influence.loss_gradients(collate(samples, side))
    tiny.assert_rows_close(rows, rows_alone(model, samples, collate))
    assert not [w for w in recwarn if "One backward pass" in str(w.message)]


# Tuned vision


def linear_layers(model):
    return [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"
    ]


def rows_of_batches(model, collate, image, sizes):
    """Rows, and those of each sample alone, of batches of samples with so many images."""
    influence = DataInfInfluence(model, CausalLM())
    batches = [
        [sample(*(image() for _ in range(n)), answer=2 + i) for i, n in enumerate(batch)]
        for batch in sizes
    ]
    with pytest.warns(UserWarning, match="may see images, or patches of them, in place of samples"):
        rows = [influence.loss_gradients(collate(samples)) for samples in batches]
    return zip(rows, [rows_alone(model, samples, collate) for samples in batches], strict=True)


def test_layers_that_see_images_get_a_pass_for_each_sample(family):
    torch.manual_seed(1)
    make, _, collate = FAMILIES[family]
    model = vision.far(make())
    model = tiny.lora(model, linear_layers(model)).double().eval()
    image = partial(image_for, family)
    for rows, exact in rows_of_batches(model, collate, image, [(1, 1), (3, 1), (2, 0)]):
        tiny.assert_rows_close(rows, exact)


def test_as_many_rows_of_images_in_each_batch_do_not_deceive():
    """Rows of two batches follow the samples, and are compared; those of a third do not."""
    torch.manual_seed(1)
    model = tiny.lora(vision.far(vision.qwen2_5()), r".*merger\.mlp\.[02]").double().eval()
    image = partial(by_patches, 1, 4, 2)
    for rows, exact in rows_of_batches(model, typed, image, [(2, 2), (2, 2), (3, 1)]):
        tiny.assert_rows_close(rows, exact)


def test_samples_without_images_are_refused_where_only_vision_was_tuned():
    torch.manual_seed(0)
    model = tiny.lora(vision.far(vision.gemma3()), r".*vision_tower.*fc1").double().eval()
    one, none = sample(whole(1)), sample()
    influence = DataInfInfluence(model, CausalLM())
    tiny.assert_rows_close(influence.loss_gradients(one), rows_alone(model, [one], in_a_row))
    with pytest.raises(ObjectiveError, match="sample without any; leave such samples out"):
        influence.loss_gradients(in_a_row([one, none]))


# What is not known


def test_images_of_unlike_numbers_of_tokens_are_refused_in_one_batch():
    torch.manual_seed(0)
    model = tiny.lora(vision.far(vision.llava_next()), LANGUAGE).double().eval()
    influence = DataInfInfluence(model, CausalLM())
    one, two, none = (sample(*(vision.in_tiles() for _ in range(n))) for n in (1, 2, 0))
    with pytest.raises(
        ModelError, match=r"'llava_next'.*batch_size=1.*one image.*'image_sizes_rows'"
    ):
        influence.loss_gradients(in_a_row([two, one]))
    with pytest.raises(ModelError, match="llava_next"):
        influence.fit([in_a_row([one, none])])
    declared = {f"{name}_rows": torch.tensor([2, 1, 0]) for name in ("pixel_values", "image_sizes")}
    exact = rows_alone(model, [two, one, none], in_a_row)
    rows = influence.loss_gradients(in_a_row([two, one, none]) | declared)
    tiny.assert_rows_close(rows, exact)
    rows = influence.loss_gradients(in_a_row([one, one]))
    tiny.assert_rows_close(rows, exact[[1, 1]])
    for i, alone in enumerate([two, one, none]):
        tiny.assert_rows_close(influence.loss_gradients(alone), exact[i : i + 1])


class WithTiles(nn.Module):
    """Adds the mean of a sample's tiles to its tokens; tiles of all samples follow one another."""

    def __init__(self):
        super().__init__()
        self.tile, self.token = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, tokens, tiles, owner):
        seen = torch.zeros(len(tokens), 3, dtype=torch.float64)
        seen = seen.index_add(0, owner, self.tile(tiles).tanh())
        return (self.token(tokens) + seen).tanh().square().sum(1)


class OfTiles:
    def losses(self, model, batch):
        owner = batch["many"].cumsum(0)
        places = torch.arange(len(batch["tiles"]))
        return model(batch["tokens"], batch["tiles"], torch.searchsorted(owner, places, right=True))


def test_rows_that_a_batch_declares_follow_their_samples_in_any_model():
    torch.manual_seed(0)
    model = WithTiles().double()
    batch = {"tokens": torch.randn(4, 2), "tiles": torch.randn(7, 4)}
    batch = {name: t.double() for name, t in batch.items()} | {"many": torch.tensor([2, 1, 1, 3])}
    influence = DataInfInfluence(model, OfTiles(), batch_size=3)
    with pytest.raises(BatchError, match=r"differ in their number of samples.*'NAME_rows'"):
        influence.loss_gradients(batch)
    with pytest.warns(UserWarning, match="may see images"):
        rows = influence.loss_gradients(batch | {"tiles_rows": batch["many"]})
    parts = batch["tiles"].split(batch["many"].tolist())
    exact = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        for loss in (
            (model.token(x) + model.tile(own).tanh().sum(0)).tanh().square().sum()
            for x, own in zip(batch["tokens"], parts, strict=True)
        )
    ]
    tiny.assert_rows_close(rows, torch.stack(exact))


@pytest.mark.parametrize(
    "numbers", [torch.tensor([2, 2, 0]), torch.tensor([2.0, 1.0, 0.0]), [2, 1, 0]]
)
def test_declared_rows_that_are_not_those_of_the_tensor(numbers):
    batch = {"x": torch.zeros(3, 2), "tiles": torch.zeros(3, 4), "tiles_rows": numbers}
    with pytest.raises(BatchError, match="'tiles_rows' must be integers of shape"):
        ImageLayout().by_sample(batch)


def test_a_text_that_was_cut_within_an_image_is_refused():
    model, samples, _ = tuned("qwen2.5-vl")
    batch = typed(samples)
    cut = {n: t[:, :6] if t.shape[:1] == (6,) and "thw" not in n else t for n, t in batch.items()}
    with pytest.raises(BatchError, match=r"not those of 'image_grid_thw'.*max_length"):
        DataInfInfluence(model, CausalLM()).loss_gradients(cut)


def test_images_without_the_texts_that_tell_their_samples_are_refused():
    model, samples, _ = tuned("qwen2.5-vl")
    batch = typed(samples)
    renamed = {f"chosen_{n}" if t.shape[:1] == (6,) else n: t for n, t in batch.items()}
    with pytest.raises(BatchError, match=r"image_grid_thw.*without 'input_ids'"):
        DataInfInfluence(model, Preference()).loss_gradients(renamed)


def test_vmap_over_a_model_with_images_is_refused():
    model, samples, collate = tuned("gemma3")
    influence = DataInfInfluence(model, CausalLM(), gradients="functional")
    with pytest.raises(ModelError, match=r'torch.func cannot map.*gradients="auto"'):
        influence.loss_gradients(collate(samples))
