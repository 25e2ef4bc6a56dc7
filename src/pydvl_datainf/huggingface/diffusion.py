"""Loading a diffusers model, its adapter, its noise schedule and what makes its conditions."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.folders import (
    AGAIN,
    Kind,
    absence,
    check_folder,
    check_safetensors,
    check_settings,
    read_settings,
)
from pydvl_datainf.huggingface.models import check_initialisation, loading

DENOISERS = ("unet", "transformer")
"""What the model is called in a pipeline's folder and in its adapters."""

LIBRARIES = ("diffusers", "transformers")
"""Whose classes the other parts of a pipeline may be."""


@dataclass(frozen=True, slots=True)
class DiffusionFiles:
    """Where a tuned diffusion model is, and how it is loaded.

    Args:
        model: folder of a diffusers pipeline, or of a UNet or transformer alone.
        adapter: LoRA weights (safetensors), or their folder: as diffusers or as peft saved them;
            None = the model itself is tuned.
        dtype: of the weights: "auto" (as stored), "float32", "bfloat16", "float16" or "float64".
        trust_pickle: whether weights may be pickles, where there are no safetensors.
    """

    model: str
    adapter: str | None = None
    dtype: str = "auto"
    trust_pickle: bool = False

    def check(self) -> None:
        """Looks through the folders of model and adapter.

        Raises:
            ModelError: if a folder or file is missing, damaged, or a pickle that is not trusted.
        """
        for name, what in ((self.model, "folder"), (self.adapter, "file or folder")):
            if name is not None and not Path(name).exists():
                raise ModelError(absence(Path(name), what))
        if self.denoiser is not None:
            self._class_of(self.denoiser, self.parts[self.denoiser])
        denoiser = Path(self.model, self.denoiser or "")
        check_folder(denoiser, "diffusion_pytorch_model", self.trust_pickle)
        if self.adapter is None:
            return
        if Path(self.adapter, "adapter_config.json").exists():
            check_folder(Path(self.adapter), "adapter_model", self.trust_pickle)
        else:
            check_safetensors(_weights_in(Path(self.adapter)))

    @property
    def parts(self) -> dict[str, Any]:
        """The parts of a pipeline, with library and class of each; empty for a model alone."""
        index = Path(self.model, "model_index.json")
        return read_settings(index) if index.exists() else {}

    @property
    def denoiser(self) -> str | None:
        """The part of a pipeline that is tuned; None where the folder is that of a model alone.

        Raises:
            ModelError: if the folder is neither.
        """
        found = [name for name in DENOISERS if self.parts.get(name)]
        if not found and not Path(self.model, "config.json").exists():
            raise ModelError(
                f"{self.model} is neither the folder of a diffusers pipeline with a unet or a "
                "transformer (model_index.json) nor that of such a model (config.json)."
            )
        return found[0] if found else None

    def part(self, name: str) -> Any:
        """Loads another part of the pipeline.

        Args:
            name: such as "vae".

        Returns:
            The part, or None if there is none.

        Raises:
            ModelError: if it is of another library than diffusers or transformers, its files are
                missing or damaged, or its weights are pickles that are not trusted.
        """
        told = self.parts.get(name) or [None, None]
        if told == [None, None]:
            return None
        kind = self._class_of(name, told)
        options: dict[str, Any] = {}
        check_settings(Path(self.model, name))
        if issubclass(kind, nn.Module):
            weights: Kind = "model" if told[0] == "transformers" else "diffusion_pytorch_model"
            check_folder(Path(self.model, name), weights, self.trust_pickle)
            options = {"use_safetensors": None if self.trust_pickle else True}
        with loading(f"{name} of", self.model, f"{name}/*.json"):
            loaded = kind.from_pretrained(self.model, subfolder=name, **options)
        return loaded.eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded

    def _class_of(self, name: str, told: Any) -> Any:
        """The class of a part. A file must not choose what is imported beyond two libraries."""
        good = isinstance(told, list) and len(told) == 2 and told[0] in LIBRARIES
        kind = getattr(imported(told[0]), str(told[1]), None) if good else None
        if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
            raise ModelError(
                f"{Path(self.model, 'model_index.json')} says that {name} is {told!r}; it must be "
                f'a class of {" or ".join(LIBRARIES)}, as in ["diffusers", "AutoencoderKL"].'
            )
        return kind

    def scheduler(self) -> Any:
        """The noise schedule: the pipeline's, or the one that lies beside the model.

        Returns:
            A diffusers scheduler.

        Raises:
            ModelError: if there is none.
        """
        if Path(self.model, "scheduler_config.json").exists():
            with loading("the scheduler of", self.model, "scheduler_config.json"):
                return imported("diffusers").DDPMScheduler.from_pretrained(self.model)
        scheduler = self.part("scheduler")
        if scheduler is None:
            raise ModelError(
                f"{self.model} has no noise schedule, so it is not known how it was trained. Save "
                "one beside the model: DDPMScheduler(...).save_pretrained(folder)."
            )
        return scheduler

    def config(self) -> dict[str, Any]:
        """Reads the model's configuration.

        Returns:
            Its size, channels and so on.

        Raises:
            ModelError: if it is damaged.
        """
        path = Path(self.model, self.denoiser or "", "config.json")
        config = read_settings(path)
        if not isinstance(config.get("in_channels"), int):
            raise ModelError(f"{path} does not say in_channels, a whole number. {AGAIN}")
        return config

    def load(self) -> nn.Module:
        """Loads model and adapter.

        Returns:
            The model in evaluation mode.

        Raises:
            ModelError: if files are missing or do not fit together.
        """
        self.check()
        diffusers, where = imported("diffusers"), self.denoiser
        wanted: dict[str, Any] = (
            {} if self.dtype == "auto" else {"torch_dtype": getattr(torch, self.dtype)}
        )
        if where is not None:
            wanted["subfolder"] = where
        with loading("the model", self.model, "config.json"):
            model = diffusers.AutoModel.from_pretrained(
                self.model, use_safetensors=None if self.trust_pickle else True, **wanted
            )
        if self.adapter is not None:
            model = self._adapted(model)
        loaded: nn.Module = model.eval()
        return loaded

    def _adapted(self, model: Any) -> Any:
        adapter = Path(self.adapter or "")
        if (adapter / "adapter_config.json").exists():
            check_initialisation(str(adapter))
            with loading("the adapter", str(adapter), "adapter_config.json"):
                return imported("peft").PeftModel.from_pretrained(
                    model, str(adapter), is_trainable=True
                )
        weights = _weights_in(adapter)
        if not hasattr(model, "load_lora_adapter"):
            raise ModelError(
                f"A {type(model).__name__} takes adapters as peft saves them, in a folder with "
                f"adapter_config.json, which {adapter} is not."
            )
        with loading("the adapter", str(adapter), weights.name):
            keys = _keys(weights)
            prefix = next((p for p in DENOISERS if all(k.startswith(f"{p}.") for k in keys)), None)
            model.load_lora_adapter(
                str(weights.parent), weight_name=weights.name, prefix=prefix, use_safetensors=True
            )
        if not any("lora_" in name for name, _ in model.named_parameters()):
            raise ModelError(f"The adapter {adapter} holds nothing for {self.model}.")
        return model


def _weights_in(adapter: Path) -> Path:
    """The one file of weights that an adapter's path names."""
    found = [adapter] if adapter.is_file() else sorted(adapter.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(f"{adapter} must be a safetensors file, or a folder with one of them.")
    return found[0]


def _keys(weights: Path) -> list[str]:
    with imported("safetensors").safe_open(weights, "pt") as file:
        return list(file.keys())


# Conditions and latents, computed once


@torch.no_grad()
def latents_of(vae: Any, images: Iterable[Tensor]) -> list[Tensor]:
    """Images in the space in which a latent diffusion model works.

    Args:
        vae: an autoencoder of diffusers.
        images: (C, H, W) each, from -1 to 1.

    Returns:
        For each image the mode of its latents' distribution, scaled as the pipeline scales it.
    """
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    encoded = (vae.encode(image.unsqueeze(0).to(vae.dtype)).latent_dist.mode() for image in images)
    return [((latents - shift) * scale)[0] for latents in encoded]


@torch.no_grad()
def embeddings_of(tokenizer: Any, encoder: Any, prompts: Iterable[str]) -> list[Tensor]:
    """Texts as the model's cross attention sees them.

    Args:
        tokenizer: of the pipeline.
        encoder: of texts, of the pipeline.
        prompts: one for each image.

    Returns:
        For each text its hidden states, (T, E), T the longest that the encoder takes.
    """
    tokens = (
        tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for prompt in prompts
    )
    return [encoder(ids)[0][0] for ids in tokens]
