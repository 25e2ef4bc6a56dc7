"""Tiny random vision language models, and samples as their processors make them."""

import torch
import transformers
from torch.nn import functional as F

import tiny

IMAGE, VIDEO, START, END = 35, 36, 37, 38
TEXT = {**tiny.DECODER, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
EYES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 8}
EYES |= {"patch_size": 4, "intermediate_size": 24}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN = {"depth": 1, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 1}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
MARKS = {"vision_start_token_id": START, "vision_end_token_id": END}


def qwen2():
    sizes = {**QWEN, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    return _qwen("Qwen2VL", sizes, {"rope_parameters": ROTARY})


def qwen2_5():
    sizes = {**QWEN, "hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 24}
    sizes |= {"fullatt_block_indexes": [0], "window_size": 16}
    return _qwen("Qwen2_5_VL", sizes, {"rope_parameters": ROTARY})


def qwen3():
    sizes = {**QWEN, "hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 24}
    sizes |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    text = {"rope_parameters": {**ROTARY, "mrope_interleaved": True}, "head_dim": 8}
    return _qwen("Qwen3VL", sizes, text)


def _qwen(name, sizes, text):
    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, **text}, vision_config=sizes, **TOKENS, **MARKS
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def gemma3():
    text = {**TEXT, "head_dim": 8, "sliding_window": 4}
    return _made("Gemma3", text, EYES, mm_tokens_per_image=1, image_token_index=IMAGE)


def llava():
    text, eyes = {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model", **EYES}
    return _made("Llava", text, eyes, image_token_index=IMAGE)


def llava_next():
    text, eyes = {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model", **EYES}
    pinpoints = {"image_grid_pinpoints": [[8, 8]], "image_token_index": IMAGE}
    return _made("LlavaNext", text, eyes, **pinpoints)


def paligemma():
    text = {"model_type": "gemma", **TEXT, "head_dim": 8}
    eyes = {"model_type": "siglip_vision_model", **EYES}
    return _made("PaliGemma", text, eyes, projection_dim=16, image_token_index=IMAGE)


def internvl():
    text = {"model_type": "qwen2", **TEXT}
    eyes = {**EYES, "image_size": [8, 8], "patch_size": [4, 4]}
    return _made("InternVL", text, eyes, image_token_id=IMAGE)


def smolvlm():
    text = {"model_type": "llama", **TEXT}
    return _made("SmolVLM", text, EYES, image_token_id=IMAGE, scale_factor=2)


def idefics2():
    text = {"model_type": "mistral", **TEXT}
    sizes = {"hidden_size": 16, "resampler_n_heads": 2, "resampler_head_dim": 8}
    sizes |= {"num_key_value_heads": 1, "resampler_n_latents": 2, "resampler_depth": 1}
    return _made("Idefics2", text, EYES, image_token_id=IMAGE, perceiver_config=sizes)


def idefics3():
    text = {"model_type": "llama", **TEXT}
    return _made("Idefics3", text, EYES, image_token_id=IMAGE, scale_factor=2)


def _made(name, text, eyes, **settings):
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=eyes, **settings
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def far(model):
    """In float64, with parameters so large that positions and pixels matter."""
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model.double().eval()


# Samples


def sample(*pieces, answer=3):
    """One sample as a batch of one: text around images and videos, then an answer.

    Args:
        *pieces: of each image or video its tensors, and the tokens that it takes: (tensors, token,
            count for each part of it that text parts from the next).
        answer: tokens that count.
    """
    ids = torch.randint(4, 34, (3,)).tolist()
    tensors = {}
    for own, token, counts in pieces:
        for count in counts:
            ids += [START, *[token] * count, END, int(torch.randint(4, 34, ()))]
        for name, tensor in own.items():
            tensors[name] = torch.cat([tensors[name], tensor]) if name in tensors else tensor
    ids += torch.randint(4, 34, (answer,)).tolist()
    ids = torch.tensor([ids])
    labels = ids.clone()
    labels[:, :-answer] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels} | tensors


def by_patches(*grid, video=False, seconds=None, parts=1):
    """An image, or a video, as a row for each of its patches, of which four make a token."""
    patches = torch.randn(grid[0] * grid[1] * grid[2], 48, dtype=torch.float64)
    names = ("pixel_values_videos", "video_grid_thw") if video else PATCHED
    tensors = dict(zip(names, (patches, torch.tensor([grid])), strict=True))
    if seconds is not None:
        tensors["second_per_grid_ts"] = torch.tensor([seconds])
    return tensors, VIDEO if video else IMAGE, [len(patches) // 4 // parts] * parts


PATCHED = ("pixel_values", "image_grid_thw")


def whole(tokens):
    """An image of 3 channels, of which the model makes so many tokens."""
    return {"pixel_values": torch.randn(1, 3, 8, 8, dtype=torch.float64)}, IMAGE, [tokens]


def in_tiles():
    """An image as LLaVA-NeXT cuts it, here into the whole and one part."""
    tiles = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64)
    return {"pixel_values": tiles, "image_sizes": torch.tensor([[8, 8]])}, IMAGE, [10]


def in_a_row(samples, side="right"):
    """The samples as one batch: texts are padded, images follow one another.

    Args:
        samples: batches of one.
        side: of the padding.
    """
    width = max(s["input_ids"].shape[1] for s in samples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {}
    for name in dict.fromkeys(name for s in samples for name in s):
        own = [s[name] for s in samples if name in s]
        if name in ("input_ids", "attention_mask", "labels"):
            own = [_padded(t, width, side, fill[name]) for t in own]
        batch[name] = torch.cat(own)
    return batch


def _padded(tensor, width, side, value):
    missing = width - tensor.shape[1]
    return F.pad(tensor, (0, missing) if side == "right" else (missing, 0), value=value)


def with_types(batch):
    """What Qwen's processors add: 1 at the tokens of images, 2 at those of videos."""
    ids = batch["input_ids"]
    return batch | {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def in_frames(samples, side="right"):
    """As `in_a_row`, but images lead with the samples, filled up by images of zeros."""
    batch = in_a_row([{n: t for n, t in s.items() if "pixel" not in n} for s in samples], side)
    most = max(len(s.get("pixel_values", ())) for s in samples)
    if most == 0:
        return batch
    frames = torch.zeros(len(samples), most, 3, 8, 8, dtype=torch.float64)
    for i, s in enumerate(samples):
        frames[i, : len(s.get("pixel_values", ()))] = s.get("pixel_values", 0)
    seen = (frames != 0).any(2)
    return batch | {"pixel_values": frames, "pixel_attention_mask": seen}
