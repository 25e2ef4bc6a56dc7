"""The diffusion model: a small UNet of diffusers, its noise schedule, and LoRA."""

import warnings

import torch
from diffusers import DDPMScheduler, UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

ANY = 10
"""The label that says nothing of the class; the ten classes have their own numbers."""

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "both": ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"),
}


def new_unet() -> UNet2DModel:
    """704,484 parameters, drawn from torch's global generator; attention at 7 by 7."""
    return UNet2DModel(
        sample_size=14,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=ANY + 1,
    )


def noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")


def with_lora(unet: nn.Module, rank: int, alpha: int, targets: str) -> nn.Module:
    """Adapters on the named layers; A is drawn from torch's global generator, B is zero."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS[targets]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(unet, config)


def labels_of(classes: Tensor, kind: str) -> Tensor:
    """What the model is told of pictures: their "own" classes, or a "shared" label for all."""
    return classes if kind == "own" else torch.full_like(classes, ANY)
