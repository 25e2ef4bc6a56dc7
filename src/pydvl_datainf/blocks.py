"""Which parameters form which block, and where each sits in the flat vector."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias
from warnings import catch_warnings, simplefilter, warn

import torch
from torch import Tensor, nn

from pydvl_datainf.errors import BlockError
from pydvl_datainf.terminal import visible
from pydvl_datainf.vectors import BlockVectors

with catch_warnings():
    # Importing pyDVL 0.10 announces deprecations of its own.
    simplefilter("ignore", FutureWarning)
    from pydvl.influence.torch.util import BlockMode

BlockStructure: TypeAlias = str | BlockMode | Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A partition of some or all trainable parameters into named blocks.

    Within a block, and in the flat vector over all blocks, parameters follow the order of the
    model's `named_parameters()`.

    Args:
        members: for each block the names of its parameters.
        shapes: for each parameter of any block its shape, in the order of the flat vector.
    """

    members: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def from_model(cls, model: nn.Module, structure: BlockStructure) -> "Blocks":
        """Divides the trainable parameters of a model.

        Args:
            model: a tied parameter belongs to the first of its names; frozen ones take no part.
            structure: "module" (one block for each module that directly owns trainable
                parameters), a pyDVL `BlockMode` or its value ("full", "layer_wise",
                "parameter_wise"), or a mapping of block name to parameter names, which may leave
                parameters out.

        Returns:
            The blocks.

        Raises:
            BlockError: if the model has no trainable parameters, or the structure is unknown, has
                empty or overlapping blocks, or names what is not a parameter of the model; or if
                trainable parameters are complex.
        """
        trainable = {
            name: p for name, p in model.named_parameters() if p.requires_grad and p.numel() > 0
        }
        if not trainable:
            raise BlockError(
                "The model has no trainable parameters, so there is nothing to compute influences "
                "with. Set requires_grad on those that were tuned."
            )
        complex_ones = [name for name, p in trainable.items() if p.is_complex()]
        if complex_ones:
            raise BlockError(
                f"Complex parameters are not supported: {_some(complex_ones)}. Freeze them, or "
                "rewrite them as pairs of real parameters."
            )
        if isinstance(structure, Mapping):
            members = _from_mapping(structure, model, trainable)
        else:
            members = _grouped(trainable, _rule(structure))
            if not members:
                raise BlockError(
                    f"{structure} leaves no block: all trainable parameters ({_some(trainable)}) "
                    'belong to the model itself, not to a child. Use "module" or "full".'
                )
        taken = {name for names in members.values() for name in names}
        shapes = {name: p.shape for name, p in trainable.items() if name in taken}
        ordered = {
            block: tuple(n for n in shapes if n in set(names)) for block, names in members.items()
        }
        return cls(ordered, shapes)

    def without(self, blocks: Collection[str]) -> "Blocks":
        """The other blocks."""
        members = {block: names for block, names in self.members.items() if block not in blocks}
        kept = {name for names in members.values() for name in names}
        return Blocks(members, {name: s for name, s in self.shapes.items() if name in kept})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the blocks."""
        return tuple(self.members)

    @property
    def widths(self) -> dict[str, int]:
        """For each block d_l, its number of parameters."""
        return {
            block: sum(prod(self.shapes[name]) for name in names)
            for block, names in self.members.items()
        }

    @property
    def n_parameters(self) -> int:
        """D, the width of the flat vector."""
        return sum(prod(shape) for shape in self.shapes.values())

    def gather(
        self, rows: Mapping[str, Tensor], device: torch.device | None = None
    ) -> BlockVectors:
        """Per-parameter vectors (B, *shape), joined to per-block vectors (B, d_l).

        Args:
            rows: for each parameter its vectors.
            device: where they are brought; None = they are on one.

        Returns:
            For each block its vectors.
        """
        flat = {name: rows[name].unsqueeze(-1).flatten(1) for name in self.shapes}
        if device is not None:
            flat = {name: vectors.to(device) for name, vectors in flat.items()}
        return OrderedDict(
            (block, _joined([flat[name] for name in names]))
            for block, names in self.members.items()
        )

    def check_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Checks that vectors belong to blocks.

        Args:
            vectors: for some or all blocks vectors as rows, (B, d_l).

        Raises:
            BlockError: if there are none, a block is unknown or a width is another.
        """
        widths = self.widths
        if not vectors or not set(vectors) <= set(widths):
            raise BlockError(f"Expected vectors for blocks of {list(widths)}, got {list(vectors)}.")
        for block, v in vectors.items():
            if v.ndim != 2 or v.shape[1] != widths[block]:
                raise BlockError(
                    f"Vectors of block '{block}' must have the shape (B, {widths[block]}), got "
                    f"{tuple(v.shape)}."
                )

    def flatten(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Per-block vectors (B, d_l), joined to flat vectors (B, D)."""
        pieces: dict[str, Tensor] = {}
        for block, names in self.members.items():
            sizes = [prod(self.shapes[name]) for name in names]
            pieces |= zip(names, torch.split(vectors[block], sizes, dim=1), strict=True)
        return _joined([pieces[name] for name in self.shapes])

    def unflatten(self, flat: Tensor) -> BlockVectors:
        """Flat vectors (B, D), cut into per-block vectors (B, d_l).

        Args:
            flat: vectors as rows, parameters in the order of `named_parameters()`.

        Returns:
            The vectors block by block.

        Raises:
            BlockError: if they are not of width D.
        """
        if flat.ndim != 2 or flat.shape[1] != self.n_parameters:
            raise BlockError(
                f"Expected vectors as rows of a (B, {self.n_parameters}) matrix, got a tensor of "
                f"shape {tuple(flat.shape)}."
            )
        sizes = [prod(shape) for shape in self.shapes.values()]
        return self.gather(dict(zip(self.shapes, torch.split(flat, sizes, dim=1), strict=True)))


def _rule(structure: str | BlockMode) -> Callable[[str], str | None]:
    """From a parameter's name to that of its block, or None where it belongs to none."""
    rules: dict[str, Callable[[str], str | None]] = {
        "module": lambda name: name.rpartition(".")[0],
        BlockMode.FULL.value: lambda name: "",
        BlockMode.LAYER_WISE.value: lambda name: name.partition(".")[0] if "." in name else None,
        BlockMode.PARAMETER_WISE.value: lambda name: name,
    }
    key = structure.value if isinstance(structure, BlockMode) else structure
    if not isinstance(key, str) or key not in rules:
        raise BlockError(
            f"Unknown block structure {structure!r}: expected one of {sorted(rules)}, a BlockMode, "
            "or a mapping of block name to parameter names."
        )
    return rules[key]


def _grouped(names: Iterable[str], rule: Callable[[str], str | None]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name in names:
        block = rule(name)
        if block is not None:
            members.setdefault(block, []).append(name)
    return members


def _from_mapping(
    structure: Mapping[str, Sequence[str]], model: nn.Module, trainable: Mapping[str, nn.Parameter]
) -> dict[str, list[str]]:
    if not structure:
        raise BlockError("The block structure is an empty mapping; name at least one block.")
    members: dict[str, list[str]] = {}
    for block, names in structure.items():
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise BlockError(
                f"Block '{block}' must be a list of parameter names, got {names!r}. "
                "For a single parameter write a list of one name."
            )
        members[block] = [n for n in names if _is_trainable(block, n, model, trainable)]
    empty = [block for block, names in members.items() if not names]
    if empty:
        raise BlockError(f"Blocks without trainable parameters: {empty}. Leave them out.")
    counts = Counter(name for names in members.values() for name in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        blocks = [block for block, names in members.items() if set(twice) & set(names)]
        raise BlockError(
            f"Blocks must not overlap: {_some(twice)} is named more than once in {blocks}."
        )
    return members


def _is_trainable(
    block: str, name: str, model: nn.Module, trainable: Mapping[str, nn.Parameter]
) -> bool:
    """Whether `name` takes part: yes, no because it is frozen (with a warning), or an error."""
    if name in trainable:
        return True
    every = dict(model.named_parameters(remove_duplicate=False))
    if name not in every:
        raise BlockError(
            f"Block '{block}' names '{name}', which is not a parameter of the model. "
            f"Its trainable parameters are {_some(trainable)}."
        )
    first = next((n for n, p in trainable.items() if p is every[name]), None)
    if first is not None:
        raise BlockError(
            f"Block '{block}' names '{name}', which is tied to '{first}'; use that name."
        )
    warn(visible(f"'{name}' of block '{block}' is frozen and takes no part."), stacklevel=6)
    return False


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=1)


def _some(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
