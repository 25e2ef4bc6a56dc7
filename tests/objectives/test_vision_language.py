"""Vision language models: images follow their samples through every cut, or are refused."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import dense
import tiny
import vision
from pydvl_datainf import (
    BatchError,
    CausalLM,
    DataInfInfluence,
    ModelError,
    ObjectiveError,
    Preference,
    SourceError,
    influence_from_trainer,
    run_influences,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.objectives import ImageLayout
from vision import by_patches, in_a_row, in_frames, sample, whole, with_types

LANGUAGE = r".*(language_model|text_model).*(q_proj|v_proj|down_proj)"


def of_patches(seconds=None, apart=False):
    """Samples of Qwen's models: images and videos of many sizes, and one without.

    Args:
        seconds: between frames, where the processor tells.
        apart: whether text stands between frames.
    """

    def clip(*grid):
        return by_patches(*grid, video=True, seconds=seconds, parts=grid[0] if apart else 1)

    one, two, wide = (1, 2, 2), (1, 4, 2), (1, 4, 6)
    return [
        sample(by_patches(*wide)),
        sample(clip(3, 2, 2)),
        sample(by_patches(*one), by_patches(*two), answer=2),
        sample(),
        sample(by_patches(*two), clip(2, 4, 2), answer=4),
        sample(by_patches(*one), by_patches(*one), by_patches(*wide)),
    ]


def of_images(tokens):
    """Samples with none, one or several images of equal size."""
    return [
        sample(whole(tokens)),
        sample(),
        sample(whole(tokens), whole(tokens), answer=2),
        sample(whole(tokens), answer=4),
        sample(whole(tokens), whole(tokens), whole(tokens)),
    ]


def typed(samples, side="right"):
    return with_types(in_a_row(samples, side))


def prefixed(samples, side="right"):
    """As PaliGemma's processor: 0 where tokens see all that is before the answer, 1 in it."""
    batch = in_a_row(samples, side)
    return batch | {"token_type_ids": (batch["labels"] != -100).int()}


FAMILIES = {
    "qwen2-vl": (vision.qwen2, of_patches, typed),
    "qwen2.5-vl": (vision.qwen2_5, lambda: of_patches(seconds=0.5), typed),
    "qwen3-vl": (vision.qwen3, lambda: of_patches(apart=True), typed),
    "gemma3": (vision.gemma3, lambda: of_images(1), in_a_row),
    "llava": (vision.llava, lambda: of_images(4), in_a_row),
    "internvl": (vision.internvl, lambda: of_images(1), in_a_row),
    "paligemma": (vision.paligemma, lambda: of_images(4), prefixed),
    "smolvlm": (vision.smolvlm, lambda: of_images(1), in_frames),
    "idefics2": (vision.idefics2, lambda: of_images(2), in_frames),
    "idefics3": (vision.idefics3, lambda: of_images(1), in_frames),
}


TOKENS = {"llava": 4, "paligemma": 4, "idefics2": 2}


def image_for(name):
    return by_patches(1, 2, 2) if "qwen" in name else whole(TOKENS.get(name, 1))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def tuned(name, targets=LANGUAGE, seed=0):
    """A model with adapters, its samples, and what makes a batch of them."""
    torch.manual_seed(seed)
    make, samples, collate = FAMILIES[name]
    model = tiny.lora(vision.far(make()), targets).double().eval()
    return model, samples(), collate


def rows_alone(model, samples, collate):
    """Gradients (B, d), from one backward pass through a batch of each sample alone."""
    names = tiny.names_of(model)
    return torch.cat([one_row(model, collate([s]), names) for s in samples])


def one_row(model, batch, names):
    parameters = dict(model.named_parameters())
    loss = tiny.answer_loss(model, batch)
    grads = torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True)
    flat = [
        torch.zeros_like(parameters[n]).flatten() if g is None else g.flatten()
        for n, g in zip(names, grads, strict=True)
    ]
    return torch.cat(flat)[None]


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


# Whole use


class Samples(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def exact_scores(influence, test, train, damping):
    """From rows (m, d) and (n, d), block by block."""
    names, total, start = tiny.names_of(influence.model), 0, 0
    assert [n for own in influence.parameter_dict.values() for n in own] == names
    for block, width in influence.blocks.widths.items():
        v, g = (rows[:, start : start + width] for rows in (test, train))
        total = total + v @ dense.datainf_matrix(g, damping[block]) @ g.T
        start += width
    return total


WHOLE = ("qwen2.5-vl", "gemma3", "smolvlm")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen2.5-vl", {}),
        *((name, {"max_tokens": 30}) for name in WHOLE),
        ("gemma3", {"batch_size": 2}),
    ],
    ids=str,
)
def test_influences_of_loaders_whose_batches_differ(name, settings):
    model, samples, collate = tuned(name)
    loader = DataLoader(Samples(samples), 3, collate_fn=collate)
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3, **settings).fit(loader)
    assert influence.is_fitted_on(loader)
    assert not influence.is_fitted_on([collate(samples[:1])])
    rows = rows_alone(model, samples, collate)
    exact = exact_scores(influence, rows[:4], rows, influence.fixed_damping)
    test = collate(samples[:4])
    tiny.assert_scores_close(influence.training_influences(test), exact)
    joined = influence.influences(collate(samples[:4]), None, collate(samples), None)
    tiny.assert_scores_close(joined, exact)


@pytest.mark.parametrize(
    ("name", "rows"), [("qwen2.5-vl", "memory"), ("gemma3", "recompute"), ("smolvlm", "zarr")]
)
def test_runs(name, rows, tmp_path):
    model, samples, collate = tuned(name)
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3, max_tokens=40)
    test, train = (
        DataLoader(Samples(part), size, collate_fn=collate)
        for part, size in ((samples[1:4], 2), (samples, 4))
    )
    run = run_influences(
        influence, test, train, tmp_path / "run.zarr", rows=rows, progress=False, exact_sample=0
    )
    exact = rows_alone(model, samples, collate)
    scores = exact_scores(influence, exact[1:4], exact, influence.fixed_damping)
    bound = 2e-2 if rows == "zarr" else 1e-9  # those on disk are in half precision
    tiny.assert_scores_close(torch.from_numpy(run.scores[...]), scores, bound)


def test_a_trainer(tmp_path):
    model, samples, _ = tuned("qwen2.5-vl")
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=2,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
    )
    data = {"train_dataset": Samples(samples), "eval_dataset": Samples(samples[:3])}
    trainer = Trainer(model, arguments, data_collator=typed, **data)
    influence, test, train = influence_from_trainer(trainer, regularization=1e-3)
    assert isinstance(influence.objective, CausalLM)
    scores = torch.cat([influence.fit(train).training_influences(batch) for batch in test])
    rows = rows_alone(model, samples, typed)
    exact = exact_scores(influence, rows[:3], rows, influence.fixed_damping)
    tiny.assert_scores_close(scores, exact)


class Recorder:
    """An engine that keeps what it was given."""

    def __init__(self, engine):
        self.engine, self.seen = engine, []

    def rows(self, batch):
        self.seen.append(batch)
        return self.engine.rows(batch)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_sample_without_padding_keeps_its_images(name, side):
    model, samples, collate = tuned(name)
    engine = Recorder(CaptureEngine(model, CausalLM(), Blocks.from_model(model, "module")))
    images = ImageLayout.of(model)
    PaddingCheckEngine(engine, model).rows(images.by_sample(collate(samples, side)))
    _, alone = map(images.as_given, engine.seen)
    shortest = min(samples, key=lambda s: s["input_ids"].shape[1])
    expected = collate([shortest])
    assert alone.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(alone[name], tensor)


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


def test_a_collator_that_drops_samples_is_refused(tmp_path):
    model, samples, _ = tuned("qwen2.5-vl")
    loader = DataLoader(Samples(samples), 3, collate_fn=lambda some: typed(some[:2]))
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3)
    with pytest.raises(SourceError, match="has 2 samples where 3 were drawn"):
        run_influences(influence, loader, loader, tmp_path / "run.zarr", progress=False)
