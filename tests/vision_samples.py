"""Samples of each family of vision language models, and their rows by one pass for each."""

import torch

import tiny
import vision
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
