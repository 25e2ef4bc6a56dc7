"""Which parameters of which families of models get their rows from one pass (docs/families.md).

python benchmarks/families.py [part of a family's name ...]

For each family a small model with random weights, tuned with LoRA on its linear layers, or on its
experts, or as a whole: whether its rows in float64 are those of one backward pass per sample; the
time of rows in float32 over that of a bare forward and backward pass of the batch, of the
parameters that are tuned and of all (least of interleaved repeats, on one thread); and how many
parameters get one backward pass per sample.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from pydvl_datainf import (
    CausalLM,
    Denoising,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

Batch = dict[str, Tensor]
LENGTH, TOKENS, WIDTH, REPEATS = 8, 64, 128, 5
WORDS = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {**WORDS, **SIZES, "max_position_embeddings": 128}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": WIDTH // 4}
ROUTED = {
    **GROUPED,
    "experts_implementation": "eager",
    "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH,
}
PAIR = {
    **WORDS,
    "d_model": WIDTH,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 2,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 2 * WIDTH for side in ("encoder", "decoder")},
}
PIXELS = {"image_size": 32, "num_labels": 3}


# Batches


def texts(length: int, labels: str = "tokens") -> Batch:
    """Texts of several lengths, padded on the right."""
    lacking = torch.arange(length).unsqueeze(1) % 4
    mask = (torch.arange(TOKENS) < TOKENS - lacking).long()
    ids = torch.randint(3, 200, mask.shape) * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels == "classes":
        return {**batch, "labels": torch.randint(0, 2, (length,))}
    return {**batch, "labels": ids.masked_fill(mask == 0, -100)}


def images(length: int) -> Batch:
    pixels = torch.randn(length, 3, 32, 32)
    return {"pixel_values": pixels, "labels": torch.randint(0, 3, (length,))}


def sounds(length: int) -> Batch:
    return {"input_values": torch.randn(length, 1600), "labels": torch.randint(0, 2, (length,))}


def spectra(length: int) -> Batch:
    return {
        "input_features": torch.randn(length, 8, 40),
        "labels": torch.randint(3, 200, (length, TOKENS)),
    }


def captions(length: int) -> Batch:
    return {**images(length), **texts(length)}


def maps(length: int) -> Batch:
    return {**images(length), "labels": torch.randint(0, 3, (length, 8, 8))}


def pictures(length: int) -> Batch:
    return {"images": torch.randn(length, 3, 16, 16), "seed": torch.arange(length)}


class Pairs:
    """1 − cos of each image and its own text: no other pairs take part, as they do in CLIP's."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        names = ("input_ids", "attention_mask", "pixel_values")
        out = model(**{name: batch[name] for name in names})
        return 1 - F.cosine_similarity(out.image_embeds, out.text_embeds)


class Pixels:
    """The mean cross entropy of each image's pixels."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["pixel_values"]).logits
        return F.cross_entropy(logits, batch["labels"], reduction="none").mean((1, 2))


# Models


@dataclass(frozen=True)
class Family:
    """A model, its loss and its batches."""

    build: Callable[[], nn.Module]
    objective: Any
    batch: Callable[[int], Batch]


def of(name: str, task: str, *given: dict[str, Any], **settings: Any) -> Callable[[], nn.Module]:
    """Builds a model of random weights."""
    merged: dict[str, Any] = {}
    for part in (*given, settings):
        merged |= part
    config = getattr(transformers, f"{name}Config")(**merged)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}For{task}"
    return lambda: getattr(transformers, kind)(config)


def causal(name: str, *given: dict[str, Any], task: str = "CausalLM", **settings: Any) -> Family:
    return Family(of(name, task, *given, **settings), CausalLM(), texts)


def masked(name: str, *given: dict[str, Any], **settings: Any) -> Family:
    return Family(of(name, "MaskedLM", *given, **settings), TokenClassification(), texts)


def classes(name: str, *given: dict[str, Any], **settings: Any) -> Family:
    build = of(name, "SequenceClassification", *given, **settings)
    return Family(build, SequenceClassification(), partial(texts, labels="classes"))


def translating(name: str, *given: dict[str, Any], **settings: Any) -> Family:
    return Family(of(name, "ConditionalGeneration", *given, **settings), Seq2SeqLM(), texts)


def seeing(name: str, *given: dict[str, Any], **settings: Any) -> Family:
    build = of(name, "ImageClassification", PIXELS, *given, **settings)
    return Family(build, SequenceClassification(), images)


def clip() -> nn.Module:
    tower = {"projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**TEXT, **tower}, vision_config={**SIZES, **PIXELS, "patch_size": 8, **tower}
    )
    return transformers.CLIPModel(config)


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def denoising() -> Any:
    from diffusers import DDPMScheduler

    return Denoising.from_scheduler(DDPMScheduler(num_train_timesteps=10), timesteps=2)


FAMILIES: dict[str, Callable[[], Family]] = {
    "Llama": lambda: causal("Llama", GROUPED),
    "Mistral": lambda: causal("Mistral", GROUPED, sliding_window=8),
    "Qwen2": lambda: causal("Qwen2", GROUPED),
    "Qwen3": lambda: causal("Qwen3", GROUPED),
    "Gemma 2": lambda: causal("Gemma2", GROUPED, sliding_window=8),
    "Gemma 3": lambda: Family(
        lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**GROUPED, sliding_window=8)
        ),
        CausalLM(),
        texts,
    ),
    "Phi-3": lambda: causal("Phi3", GROUPED),
    "Falcon": lambda: causal(
        "Falcon", WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4
    ),
    "GPT-2": lambda: causal("GPT2", WORDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=128),
    "GPT-NeoX (Pythia)": lambda: causal("GPTNeoX", TEXT),
    "OPT": lambda: causal("OPT", TEXT, ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH),
    "Mamba": lambda: causal("Mamba", WORDS, hidden_size=WIDTH, num_hidden_layers=2, state_size=4),
    "Mixtral": lambda: causal(
        "Mixtral", GROUPED, experts_implementation="eager", num_local_experts=4
    ),
    "Qwen2-MoE": lambda: causal(
        "Qwen2Moe", ROUTED, num_experts=4, shared_expert_intermediate_size=WIDTH
    ),
    "Qwen3-MoE": lambda: causal("Qwen3Moe", ROUTED, num_experts=4),
    "OLMoE": lambda: causal("Olmoe", ROUTED, num_experts=4),
    "DeepSeek-V3": lambda: causal(
        "DeepseekV3",
        {k: v for k, v in ROUTED.items() if k != "head_dim"},
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
    ),
    "GPT-OSS": lambda: causal(
        "GptOss",
        GROUPED,
        experts_implementation="eager",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
    ),
    "BERT, masked": lambda: masked("Bert", TEXT),
    "BERT, classifier": lambda: classes("Bert", TEXT),
    "RoBERTa, masked": lambda: masked("Roberta", TEXT),
    "RoBERTa, classifier": lambda: classes("Roberta", TEXT),
    "DistilBERT": lambda: classes(
        "DistilBert", TEXT, dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=2 * WIDTH
    ),
    "ALBERT": lambda: classes("Albert", TEXT, embedding_size=32),
    "ELECTRA": lambda: classes("Electra", TEXT, embedding_size=32),
    "DeBERTa-v2": lambda: classes(
        "DebertaV2",
        TEXT,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "ModernBERT": lambda: classes(
        "ModernBert",
        TEXT,
        cls_token_id=1,
        sep_token_id=2,
        local_attention=8,
        attn_implementation="sdpa",
    ),
    "T5": lambda: translating(
        "T5",
        WORDS,
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "BART": lambda: translating("Bart", PAIR),
    "mBART": lambda: translating("MBart", PAIR),
    "Blenderbot": lambda: translating("Blenderbot", PAIR),
    "Whisper": lambda: Family(
        of(
            "Whisper",
            "ConditionalGeneration",
            PAIR,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=128,
        ),
        Seq2SeqLM(),
        spectra,
    ),
    "Wav2Vec2": lambda: Family(
        of(
            "Wav2Vec2",
            "SequenceClassification",
            TEXT,
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=16,
            mask_time_prob=0.0,
        ),
        SequenceClassification(),
        sounds,
    ),
    "ViT": lambda: seeing("ViT", SIZES, patch_size=8),
    "Swin": lambda: seeing(
        "Swin", patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    ),
    "ConvNeXt": lambda: seeing(
        "ConvNext", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=4
    ),
    "SegFormer": lambda: Family(
        of(
            "Segformer",
            "SemanticSegmentation",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=3,
        ),
        Pixels(),
        maps,
    ),
    "CLIP": lambda: Family(clip, Pairs(), captions),
    "UNet2D": lambda: Family(unet, denoising(), pictures),
}


HEADS = {
    "lm_head",
    "classifier",
    "score",
    "decoder",
    "cls",
    "embed_out",
    "head",
    "output_projection",
}
EXPERTS = {"Mixtral", "Qwen3-MoE", "GPT-OSS"}


def linear_layers(model: nn.Module) -> list[str]:
    """What LoRA is put on: the last parts of names, without output layers."""
    if type(model).__name__.startswith("Mamba"):  # peft refuses the others
        return ["in_proj", "x_proj"]
    if type(model).__name__.startswith("UNet"):
        return ["to_q", "to_k", "to_v"]
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, kinds)}
    return sorted(names - HEADS)


def tuned(family: Family, how: str) -> nn.Module:
    """A model in evaluation mode whose trainable parameters were moved from their start."""
    torch.manual_seed(0)
    model = family.build()
    if how == "LoRA":
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=linear_layers(model))
        )
    if how == "LoRA of experts":
        parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        lora = peft.LoraConfig(r=4, target_modules=["q_proj"], target_parameters=parameters)
        model = peft.get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


# What is measured


def engine_of(model: nn.Module, family: Family) -> CaptureEngine:
    return CaptureEngine(model, family.objective, Blocks.from_model(model, "module"))


def largest_error(family: Family, how: str) -> tuple[float, set[str]]:
    """Of an entry over its row's norm, in float64; and what gets single passes."""
    model = tuned(family, how).double()
    engine = engine_of(model, family)
    worst = 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    for length in (4, 3):
        batch = {
            k: t.double() if t.is_floating_point() else t for k, t in family.batch(length).items()
        }
        rows = engine.blocks.flatten(engine.rows(batch))
        for i, row in enumerate(rows):
            loss = family.objective.losses(model, {k: t[i : i + 1] for k, t in batch.items()})
            grads = torch.autograd.grad(loss.sum(), parameters, materialize_grads=True)
            exact = torch.cat([g.flatten() for g in grads])
            worst = max(worst, float((row - exact).abs().max() / exact.norm()))
    return worst, engine.places.unexplained


def passed(model: nn.Module, family: Family, batch: Batch) -> None:
    family.objective.losses(model, batch).sum().backward()
    model.zero_grad()


def factors(family: Family, how: str) -> tuple[float, float]:
    """Time of rows over that of a bare pass of what is tuned, and of all parameters."""
    batch, model, whole = family.batch(LENGTH), tuned(family, how), tuned(family, how)
    whole.requires_grad_(True)
    engine = engine_of(model, family)
    for _ in range(3):  # the first batches are checked more often than later ones
        engine.rows(batch)
    work = (
        partial(engine.rows, batch),
        partial(passed, model, family, batch),
        partial(passed, whole, family, batch),
    )
    least = [float("inf")] * len(work)
    for _ in range(REPEATS):
        for i, function in enumerate(work):
            start = process_time()
            function()
            least[i] = min(least[i], process_time() - start)
    return least[0] / least[1], least[0] / least[2]


def main() -> None:
    """Measures and prints one table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    packages = (torch, transformers, peft)
    print(", ".join(f"{package.__name__} {package.__version__}" for package in packages))
    print("| family | tuned | error | × tuned | × all | single passes |\n|---|---|---|---|---|---|")
    for name, made in FAMILIES.items():
        if any(part.lower() in name.lower() for part in sys.argv[1:] or [""]):
            for how in ("LoRA", "all", *(["LoRA of experts"] if name in EXPERTS else [])):
                worst, slow = largest_error(made(), how)
                tuned_only, whole = factors(made(), how)
                row = (
                    name,
                    how,
                    f"{worst:.0e}",
                    f"{tuned_only:.1f}",
                    f"{whole:.1f}",
                    str(len(slow)),
                )
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
