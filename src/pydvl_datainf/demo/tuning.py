"""MiniLM with LoRA adapters: built, tuned on reviews, and frozen but for the adapters."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from pydvl_datainf.demo.errors import DemoSettingsError
from pydvl_datainf.demo.reviews import LABELS, Reviews
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.models import quiet_transformers

Batch: TypeAlias = dict[str, Tensor]

LORA_TARGETS = ("query", "value")
"""The layers of each block of the transformer that get adapters."""


class EncodedReviews(Dataset[Batch]):
    """Tokenised reviews, all padded to one length; a batch is cut to its own longest review.

    Args:
        tensors: what the model takes: input_ids, attention_mask and the like (n, tokens), and
            labels (n,).
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = dict(tensors)

    def __len__(self) -> int:
        return len(self._tensors["labels"])

    def __getitem__(self, i: int) -> Batch:
        return {name: tensor[i] for name, tensor in self._tensors.items()}

    def chosen(self, indices: npt.NDArray[np.intp]) -> "EncodedReviews":
        """Some of the reviews, by their positions."""
        return EncodedReviews({name: tensor[indices] for name, tensor in self._tensors.items()})

    def to_batch(self) -> Batch:
        """All reviews at once.

        Returns:
            One batch of n reviews.
        """
        return trimmed(self._tensors)

    def to_loader(
        self, batch_size: int, shuffle: torch.Generator | None = None
    ) -> DataLoader[Batch]:
        """Batches of reviews.

        Args:
            batch_size: reviews in a batch; the last may have fewer.
            shuffle: draws a new order for each pass; without it the order stays.

        Returns:
            A loader of batches.
        """
        # A loader without a generator draws from torch's global one, even if it keeps the order.
        return DataLoader(
            self,
            batch_size,
            shuffle=shuffle is not None,
            generator=shuffle or torch.Generator(),
            collate_fn=_collated,
        )


def trimmed(batch: Mapping[str, Tensor]) -> Batch:
    """Cuts off the columns in which every review is padding.

    Args:
        batch: tokenised reviews, padded on the right.

    Returns:
        The same reviews, no wider than the longest of them.
    """
    longest = int(batch["attention_mask"].sum(dim=1).max())
    return {name: t[:, :longest] if t.ndim == 2 else t for name, t in batch.items()}


def _collated(samples: list[Batch]) -> Batch:
    return trimmed(default_collate(samples))


def encode(reviews: Reviews, folder: Path, tokens: int) -> EncodedReviews:
    """Tokenises reviews.

    Args:
        reviews: their texts and given labels are used.
        folder: holds the vocabulary.
        tokens: longer reviews are cut there.

    Returns:
        The tokenised reviews, in the same order.
    """
    tokenizer = imported("transformers").AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )
    encoded = tokenizer(
        list(reviews.texts),
        truncation=True,
        max_length=tokens,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    return EncodedReviews({**encoded, "labels": torch.from_numpy(reviews.labels)})


def build_model(folder: Path, rank: int) -> nn.Module:
    """Builds MiniLM as a classifier, with LoRA adapters on query and value of every layer.

    Args:
        folder: holds configuration and weights.
        rank: rank of each adapter; alpha is the same, so that adapters are added unscaled.

    Returns:
        A model whose adapters and classifier head are new (drawn from torch's global generator)
        and trainable, and the rest is frozen.
    """
    with quiet_transformers():
        model = imported("transformers").AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(LABELS), local_files_only=True
        )
    peft = imported("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
    )
    with warnings.catch_warnings():
        # peft asks the model by a name that transformers 5 announces to drop.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


def tune(
    model: nn.Module, loader: DataLoader[Batch], epochs: int, learning_rate: float, progress: bool
) -> None:
    """Trains what is trainable with AdamW; the model is changed in place and left in eval mode.

    Args:
        model: gives an object with the mean loss of a batch as `loss`.
        loader: batches.
        epochs: passes over them.
        learning_rate: constant.
        progress: show a bar.

    Raises:
        DemoSettingsError: if the loss is no longer finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    model.train()
    with tqdm(total=epochs * len(loader), desc="Tuning", unit="batch", disable=not progress) as bar:
        for batch in (batch for _ in range(epochs) for batch in loader):
            optimizer.zero_grad()
            loss = model(**batch).loss
            if not loss.isfinite():
                raise DemoSettingsError(
                    f"tuning diverged: the loss is {loss.item()} after {bar.n} batches at "
                    f"learning_rate={learning_rate:g}; lower it"
                )
            loss.backward()
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    optimizer.zero_grad()
    model.eval()


def freeze_all_but_adapters(model: nn.Module) -> None:
    """Leaves only the LoRA matrices trainable, in place.

    Args:
        model: a model with LoRA adapters.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def tuned_model(
    train: EncodedReviews, folder: Path, settings: DemoSettings, progress: bool
) -> nn.Module:
    """Builds and tunes a model; torch's global generator is as before afterwards.

    Args:
        train: training reviews with the given labels.
        folder: holds configuration and weights.
        settings: rank, epochs, batch size, learning rate and seed.
        progress: show a bar.

    Returns:
        The model in eval mode, of which only the LoRA matrices are trainable.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # others would not be restored
        model = build_model(folder, settings.rank)
        order = torch.Generator().manual_seed(settings.seed)
        loader = train.to_loader(settings.batch_size, shuffle=order)
        tune(model, loader, settings.epochs, settings.learning_rate, progress)
    freeze_all_but_adapters(model)
    return model
