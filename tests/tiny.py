"""Tiny random models, their batches, and their losses written down plainly."""

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import dense

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = {**SIZES, "vocab_size": 40, "intermediate_size": 24, "max_position_embeddings": 16}
TRANSLATOR = {
    "vocab_size": 40,
    "d_model": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 16,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
}
DECODER = {**ENCODER, "num_key_value_heads": 1, "pad_token_id": 0}


def bert(**kwargs):
    return BertForSequenceClassification(BertConfig(**ENCODER, **kwargs))


def bert_tokens(**kwargs):
    return BertForTokenClassification(BertConfig(**ENCODER, num_labels=3, **kwargs))


def bert_masked(**kwargs):
    """Whose output layer shares its bias with the head around it, and its weight with the input."""
    return BertForMaskedLM(BertConfig(**ENCODER, **kwargs))


def roberta(**kwargs):
    config = RobertaConfig(**ENCODER, pad_token_id=0, type_vocab_size=1, num_labels=3, **kwargs)
    return RobertaForSequenceClassification(config)


def gpt2(**kwargs):
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **kwargs))


def llama(**kwargs):
    return LlamaForCausalLM(LlamaConfig(**DECODER, **kwargs))


def llama_classifier(**kwargs):
    return LlamaForSequenceClassification(LlamaConfig(**DECODER, num_labels=2, **kwargs))


def mistral(**kwargs):
    """Whose attention reaches three tokens back."""
    return MistralForCausalLM(MistralConfig(**DECODER, sliding_window=3, **kwargs))


def mixtral(**kwargs):
    """Which sends each token to two of three experts."""
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    return MixtralForCausalLM(MixtralConfig(**DECODER, **experts, **kwargs))


def opt(**kwargs):
    """Which joins samples and positions in one dimension."""
    sizes = {**SIZES, "vocab_size": 40, "ffn_dim": 24, "max_position_embeddings": 16}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, pad_token_id=0, **kwargs))


def qwen2(**kwargs):
    return Qwen2ForCausalLM(Qwen2Config(**DECODER, **kwargs))


def m2m100(**kwargs):
    """Which does not say how its decoder's input follows from labels."""
    config = M2M100Config(**TRANSLATOR, decoder_start_token_id=2, **kwargs)
    return M2M100ForConditionalGeneration(config)


def blenderbot(**kwargs):
    config = BlenderbotConfig(**TRANSLATOR, decoder_start_token_id=1, **kwargs)
    return BlenderbotForConditionalGeneration(config)


def whisper(**kwargs):
    """Which hears."""
    config = WhisperConfig(
        **TRANSLATOR,
        num_mel_bins=4,
        max_source_positions=10,
        max_target_positions=16,
        decoder_start_token_id=2,
        **kwargs,
    )
    return WhisperForConditionalGeneration(config)


def qwen2_moe(**kwargs):
    """Whose shared expert sees samples and positions in one dimension."""
    sizes = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 12, "num_experts": 3}
    experts = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**DECODER, **sizes, **experts, **kwargs))


def t5(**kwargs):
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}
    sizes |= {"num_heads": 2, "relative_attention_num_buckets": 8}
    config = T5Config(**sizes, decoder_start_token_id=0, **kwargs)
    return T5ForConditionalGeneration(config)


def bart(**kwargs):
    """Whose decoder starts with another token than padding."""
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
    }
    config = BartConfig(vocab_size=40, d_model=16, max_position_embeddings=16, **sizes, **kwargs)
    return BartForConditionalGeneration(config)


def vit(**kwargs):
    sizes = {"image_size": 8, "patch_size": 4, "intermediate_size": 24, "num_labels": 3}
    return ViTForImageClassification(ViTConfig(**SIZES, **sizes, **kwargs))


def swin(**kwargs):
    """Whose attention sees windows, which are shifted in every second layer."""
    sizes = {"image_size": 8, "patch_size": 1, "embed_dim": 8, "depths": [2], "num_heads": [2]}
    config = SwinConfig(**sizes, window_size=4, num_labels=3, **kwargs)
    return SwinForImageClassification(config)


def deberta(**kwargs):
    """Whose attention projects relative positions, beside texts, by the same layers."""
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}
    config = DebertaV2Config(**ENCODER, **relative, share_att_key=True, **kwargs)
    return DebertaV2ForSequenceClassification(config)


def resnet(**kwargs):
    """In evaluation mode with statistics that are not trivial."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3, **kwargs)).eval()
    for statistic in (b for b in model.buffers() if b.is_floating_point()):
        statistic += 0.3 * torch.rand_like(statistic)
    return model


BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}


def unet():
    """Of images of 3 channels in 5 classes."""
    from diffusers import UNet2DModel  # here, since most tests need none of it

    return UNet2DModel(
        sample_size=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        num_class_embeds=5,
        **BLOCKS,
    )


def conditional_unet():
    """Of latents of 4 channels and texts."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=6,
        **BLOCKS,
    )


def dit():
    """Of latents of 4 channels in 5 classes; it predicts a variance in 4 further channels."""
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "patch_size": 2}
    return DiTTransformer2DModel(
        sample_size=4, in_channels=4, out_channels=8, num_embeds_ada_norm=5, **sizes
    )


def with_adapters(model, config):
    """Adapters whose trainable parameters were moved from their start, where some hide others."""
    return moved(get_peft_model(model, config))


def moved(model):
    """The model with its trainable parameters moved from their start."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def lora(model, targets, **kwargs):
    return with_adapters(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, **kwargs))


def names_of(model):
    """The names of the trainable parameters, in their order."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


# Batches


def masks(length, positions, side="right"):
    """Masks (B, T) of texts that lack 0, 1, 2, 0, ... tokens on one side."""
    lacking = torch.arange(length).unsqueeze(1) % 3
    offsets = torch.arange(positions).expand(length, positions)
    seen = offsets < positions - lacking if side == "right" else offsets >= lacking
    return seen.long()


def texts(length, positions, side="right"):
    """Token ids of texts of different lengths, and their mask."""
    mask = masks(length, positions, side)
    return {
        "input_ids": torch.randint(1, 40, (length, positions)) * mask,
        "attention_mask": mask,
    }


def labelled_texts(length=4, positions=7, classes=2):
    return {**texts(length, positions), "labels": torch.randint(0, classes, (length,))}


def labelled_tokens(length=4, positions=7):
    """A class for each token but the first, as taggers do not label special tokens."""
    labels = torch.randint(0, 3, (length, positions))
    labels[:, 0] = -100
    return {**texts(length, positions), "labels": labels}


def answers(length=4, positions=7, side="right"):
    """Texts of which the last two or three tokens are the answer."""
    batch = texts(length, positions, side)
    last = (
        batch["attention_mask"].flip(1).cumsum(1).flip(1) <= 2 + torch.arange(length)[:, None] % 2
    )
    counted = last & batch["attention_mask"].bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(~counted, -100)}


def images(length=4, *_):
    return {"pixel_values": torch.randn(length, 3, 8, 8), "labels": torch.randint(0, 3, (length,))}


def translations(length=4, positions=7):
    """Encoder texts and decoder targets of different lengths each; the decoder starts with 0."""
    mask = masks(length, positions - 2).flip(0).bool()
    targets = torch.randint(1, 40, mask.shape)
    return {
        **texts(length, positions),
        "decoder_input_ids": F.pad(targets[:, :-1], (1, 0)),
        "decoder_attention_mask": mask.long(),
        "labels": targets.masked_fill(~mask, -100),
    }


def to_the_left(batch):
    """The same texts with their padding on the left."""
    lengths = batch["attention_mask"].sum(1)
    positions = batch["attention_mask"].shape[1]
    moved = (torch.arange(positions) + lengths[:, None]) % positions
    return {k: v.gather(1, moved) for k, v in batch.items()}


def joined(*batches):
    """The samples of several batches of one length in one batch, which needs no masks."""
    return {k: torch.cat([b[k] for b in batches]) for k in batches[0] if "mask" not in k}


def in_float64(batch):
    """Images in float64; token ids as they are."""
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


# Losses of a batch of one, in float64


def classification_loss(model, batch):
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits.double(), batch["labels"])


def token_loss(model, batch):
    """Over the tokens that have a label and are not padding."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double()
    counted = (batch["labels"] != -100) & batch.get("attention_mask", torch.tensor(1)).bool()
    return F.cross_entropy(logits[counted], batch["labels"][counted])


def answer_loss(model, batch):
    """Of a causal language model, over the tokens of the answer; padding is on the right."""
    log_p = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0].double()
    log_p, labels = log_p.log_softmax(-1), batch["labels"][0]
    places = [t for t in range(1, len(labels)) if labels[t] != -100]
    return -torch.stack([log_p[t - 1, labels[t]] for t in places]).mean()


def answer_loss_of_text(model, batch):
    """The same from the tokens of the text alone: padding, on either side, is cut off."""
    seen = batch["attention_mask"][0].bool()
    return answer_loss(model, {k: batch[k][:, seen] for k in ("input_ids", "labels")})


def translation_loss(model, batch):
    """Of an encoder-decoder, over the targets."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits[0].double(), batch["labels"][0])


# Comparison


def influences(model, loss, test, train):
    """Scores (m, n) by the oracle, where each trainable parameter is a block."""
    names = names_of(model)
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    test, train = (
        dict(zip(names, dense.gradients(model, loss, side, names).split(sizes, 1), strict=True))
        for side in (test, train)
    )
    damping = {name: dense.automatic_damping(rows) for name, rows in train.items()}
    return dense.influences(test, train, train, damping)


def assert_scores_close(scores, exact, bound=1e-9):
    """Compares entries; the bound is relative to the root mean square of each test sample."""
    scale = exact.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(torch.as_tensor(scores) / scale, exact / scale, rtol=0, atol=bound)


def assert_rows_close(rows, exact, bound=1e-9):
    """Compares entries with the exact ones; the bound is relative to the norm of each row."""
    scale = exact.norm(dim=1, keepdim=True)
    assert (scale > 0).all()
    torch.testing.assert_close(rows.double() / scale, exact / scale, rtol=0, atol=bound)


def pair(n=4):
    """Inputs and targets (n, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 3, generator=generator)
