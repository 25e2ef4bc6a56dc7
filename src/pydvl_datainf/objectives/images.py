"""Images and videos of vision language models: which rows of their tensors belong to which sample.

Processors put the images of all samples one after the other, so that tensors lead with images, or
with their patches. Here they become tensors that lead with the samples, filled up to the largest
number of rows, of which samples are cut like any others; before the model is called they are put
in a row again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, check_batch
from pydvl_datainf.errors import BatchError, ModelError
from pydvl_datainf.objectives.tokens import OTHERS

IDS = "input_ids"
DECLARED = "_rows"
"""Ends the name under which a batch tells how many rows of a tensor belong to each sample."""

APART = ":images"  # so that nothing takes it for tokens, by its name
COUNTS = ":counts"
"""End the names of a tensor that was made to lead with the samples, and of its rows' numbers."""

EVEN = frozenset({"gemma3", "internvl", "llava", "paligemma", "vipllava"})
"""Families in which all images have as many tokens."""

LEADING = frozenset({"idefics2", "idefics3", "smolvlm"})
"""Families whose tensors lead with the samples: images that a sample has not are zeros."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How the images of a batch follow from its tokens; of other models, that there are none.

    Args:
        family: the type of the model in transformers.
        tokens: ids of the tokens whose places images and videos take, by "image" and "video".
        merge: patches along each side of an image that become one token.
    """

    family: str = ""
    tokens: Mapping[str, int] = field(default_factory=dict)
    merge: int = 1

    @classmethod
    def of(cls, model: Any) -> "ImageLayout":
        """That of a model, from its configuration."""
        config: Any = getattr(_inner(model), "config", None)
        vision = getattr(config, "vision_config", None)
        if vision is None:
            return cls()
        tokens: dict[str, int] = {}
        for kind in ("image", "video"):
            for end in ("index", "id"):
                token = getattr(config, f"{kind}_token_{end}", None)
                tokens |= {kind: token} if type(token) is int else {}
        return cls(config.model_type, tokens, getattr(vision, "spatial_merge_size", None) or 1)

    def by_sample(self, given: Any) -> Batch:
        """Checks a batch and makes all of its tensors lead with the samples.

        Args:
            given: what a data loader yielded or a caller passed; or what this returned before.

        Returns:
            The batch, with two tensors in place of each that leads with images or patches: its rows
            by sample, shape (B, most rows, ...), and their numbers, shape (B,).

        Raises:
            BatchError: if it is no batch, or its images are not those of its tokens.
            ModelError: if nothing tells which images of this family belong to which sample.
        """
        if not isinstance(given, Mapping):
            return check_batch(given)
        counts = {n: given[n + DECLARED] for n in given if n + DECLARED in given}
        others = {n: t for n, t in given.items() if n.removesuffix(DECLARED) not in counts}
        images = {n: others[n] for n in self._images(others)}
        counts |= self._counts(images, given) if images else {}
        batch = {n: t for n, t in others.items() if n not in counts}
        for name, numbers in counts.items():
            batch[name + APART] = _apart(name, given[name], numbers)
            batch[name + APART + COUNTS] = numbers
        return check_batch(batch)

    def as_given(self, batch: Batch) -> Batch:
        """A batch as a processor gives it, from what `by_sample` returned or a part of it.

        Args:
            batch: of B samples.

        Returns:
            The batch, without images where no sample has any.
        """
        if not self.has_images(batch) or not isinstance(batch, Mapping):
            return batch
        given = dict(batch)
        for name in [n for n in batch if n.endswith(APART)]:
            counts, rows = given.pop(name + COUNTS), given.pop(name)
            if bool(counts.any()):
                given[name.removesuffix(APART)] = rows[_filled(counts, rows)]
        if self.family in LEADING and not any(bool(n.any()) for n in self._used(batch[IDS])):
            return {n: t for n, t in given.items() if not _is_image(n)}
        return given

    def has_images(self, batch: Batch) -> bool:
        """Whether layers of the model may see images in place of samples."""
        if not isinstance(batch, Mapping):
            return False
        return any(n.endswith(APART) for n in batch) or any(True for _ in self._images(batch))

    def _images(self, batch: Mapping[str, Any]) -> Iterator[str]:
        """Names of tensors that may lead with images."""
        return (n for n in batch if self.tokens and _is_image(n) and APART not in n)

    def _used(self, ids: Tensor) -> Iterator[Tensor]:
        """For images, and for videos, how many tokens of each sample they take, (B,)."""
        return ((ids == token).sum(1) for token in self.tokens.values())

    def _counts(self, images: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of the tensors that do not lead with the samples, the rows of each sample."""
        ids = batch.get(IDS)
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise BatchError(
                f"The batch has {', '.join(sorted(images))} without '{IDS}' of shape (B, T), by "
                "which the images' samples are known. Of preferences only texts are supported."
            )
        tensors = {n: t for n, t in images.items() if isinstance(t, Tensor) and t.ndim > 0}
        if self.family in LEADING:
            return {}
        counts: dict[str, Tensor] = {}
        if len(ids) == 1:
            counts |= {n: torch.tensor([len(t)], device=t.device) for n, t in tensors.items()}
            tensors = {}
        for kind in ("image", "video"):
            own = {n: t for n, t in tensors.items() if _is_video(n) == (kind == "video")}
            if own:
                counts |= self._counts_of(kind, own, ids)
        return {n: c for n, c in counts.items() if not bool((c == 1).all())}

    def _counts_of(self, kind: str, own: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        if kind not in self.tokens:
            raise self._unknown(own)
        used = (ids == self.tokens[kind]).sum(1)
        if f"{kind}_grid_thw" in own:
            numbers = self._by_grid(own[f"{kind}_grid_thw"].to(used), used)
            if numbers is None:
                raise BatchError(
                    f"The tokens of {kind}s, {used.tolist()} in the samples of a batch, are not "
                    f"those of '{kind}_grid_thw'. Cut no text within an {kind}: leave max_length "
                    "out, or leave long samples out."
                )
        else:
            numbers = list(self._by_number(own, used))
        known = {int(n.sum()): n for n in numbers}
        if any(len(t) not in known for t in own.values()):
            raise self._unknown(own)
        return {name: known[len(t)].to(t.device) for name, t in own.items()}

    def _by_grid(self, grid: Tensor, used: Tensor) -> list[Tensor] | None:
        """How many images, and patches of them, each sample has; None where they do not fit."""
        patches = grid.prod(1)
        tokens, rows = (_ends(each) for each in (patches // self.merge**2, patches))
        last = torch.searchsorted(tokens, used.cumsum(0))
        if int(last[-1]) != len(grid) or not torch.equal(tokens[last], used.cumsum(0)):
            return None
        begin = torch.zeros_like(last[:1])
        return [ends.diff(prepend=begin) for ends in (last, rows[last])]

    def _by_number(self, own: Mapping[str, Tensor], used: Tensor) -> Iterator[Tensor]:
        """How many images each sample has, from their number in the batch."""
        for n in {len(t) for t in own.values()}:
            if n == len(used) and bool(used.all()):  # one each, however many tokens they have
                yield torch.ones_like(used)
            elif self.family in EVEN and not any(name.endswith("sizes") for name in own):
                each = int(used.sum()) // n
                if each and not bool((used % each).any()) and each * n == int(used.sum()):
                    yield used // each

    def _unknown(self, own: Mapping[str, Tensor]) -> ModelError:
        shapes = {name: tuple(t.shape) for name, t in own.items()}
        return ModelError(
            f"Which images of a batch belong to which sample is not known for this model "
            f"('{self.family}') and batch: {shapes}. Use a DataLoader with batch_size=1, or give "
            f"every sample one image, or put '{min(own)}{DECLARED}' into the batch (and the same "
            "for the others): the number of rows of each sample, shape (B,)."
        )


def outside_language(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The parameters whose layers may see images in place of samples.

    Args:
        model: that owns them.
        names: of parameters.

    Returns:
        Those that are not of the language model inside, as far as the model tells which that is.
    """
    inner = _inner(model)
    inside: set[int] = set()
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
    if decoder not in (inner, getattr(inner, "base_model", None), None):
        head = inner.get_output_embeddings()
        parts = (decoder,) if head is None else (decoder, head)
        inside = {id(p) for part in parts for p in part.parameters()}
    every = dict(model.named_parameters())
    return [name for name in names if id(every[name]) not in inside]


def without_images(given: Any) -> Any:
    """The part of a batch that leads with the samples whatever the model."""
    if not isinstance(given, Mapping):
        return given
    images = {n for n in given if IDS in given and _is_image(n)}
    images |= {n for n in given if n + DECLARED in given}
    return {n: t for n, t in given.items() if n not in images}


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_image(name: str) -> bool:
    return any(part in name for part in OTHERS) or _is_video(name)


def _is_video(name: str) -> bool:
    return "video" in name or name.startswith("second_per_grid")


def _ends(lengths: Tensor) -> Tensor:
    """Where parts in a row begin, and where the last one ends."""
    return torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])


def _filled(counts: Tensor, rows: Tensor) -> Tensor:
    """Which of the rows by sample are there, (B, most rows)."""
    return torch.arange(rows.shape[1], device=counts.device) < counts[:, None]


def _apart(name: str, tensor: Any, counts: Any) -> Tensor:
    whole = isinstance(counts, Tensor) and counts.ndim == 1 and not counts.is_floating_point()
    if not isinstance(tensor, Tensor) or not whole or int(counts.sum()) != len(tensor):
        raise BatchError(
            f"'{name}{DECLARED}' must be integers of shape (B,), the number of rows of '{name}' "
            "that belong to each sample, all of its rows together."
        )
    apart = tensor.new_zeros(len(counts), int(counts.max()), *tensor.shape[1:])
    apart[_filled(counts.to(tensor.device), apart)] = tensor
    return apart
