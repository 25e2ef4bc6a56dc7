r"""Rows in the coordinates in which Adam takes its steps.

Adam divides what it does to each parameter by √v̂ + ε, where v̂ = v / (1 − β₂ᵗ) is the mean of its
squared gradient that was running for t steps. In coordinates that are larger by (√v̂ + ε)^(1/2) its
steps are those of plain descent, and a gradient there is

    (√v̂ + ε)^(-1/2) · g      elementwise,

so that the product of two of them is preconditioned once: Σ g g' / (√v̂ + ε).
Source: Kingma, Ba, "Adam", ICLR 2015; in influences Xia et al., "LESS", ICML 2024.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import OptimizerError
from pydvl_datainf.fingerprint import as_bytes
from pydvl_datainf.gradients.engines import LossGradientEngine
from pydvl_datainf.terminal import some
from pydvl_datainf.vectors import BlockVectors

Settings: TypeAlias = Mapping[str, Any]

STATE = {"step", "exp_avg", "exp_avg_sq"}
"""What torch's Adam and AdamW keep of a parameter."""

OTHERS = (
    "Influences in Adam's coordinates need the state of torch.optim.Adam or AdamW, without amsgrad "
    "(in transformers optim=adamw_torch or adamw_torch_fused). Leave the preconditioner out."
)


@dataclass(frozen=True, slots=True, eq=False)
class AdamPreconditioner:
    """By what Adam would divide steps, from the state of an optimizer.

    Args:
        scales: for each parameter that it has stepped, by name, (√v̂ + ε)^(-1/2) in its shape.
        step: how many steps it had taken.
    """

    scales: Mapping[str, Tensor]
    step: int

    @classmethod
    def from_optimizer(cls, optimizer: Any, model: nn.Module) -> Self:
        """Reads an optimizer in memory, such as the `optimizer` of a Trainer that has finished.

        Args:
            optimizer: `torch.optim.Adam` or `AdamW`.
            model: whose parameters it steps.

        Returns:
            What it would divide their steps by, as it is now.

        Raises:
            OptimizerError: if it is another kind of optimizer, or has taken no step.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return cls.from_states(
            (names[id(parameter)], group, optimizer.state.get(parameter, {}))
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in names
        )

    @classmethod
    def from_states(cls, states: Iterable[tuple[str, Settings, Mapping[str, Any]]]) -> Self:
        """Computes the scales of parameters.

        Args:
            states: for each parameter its name, the settings of its group, and its state, which is
                empty where it was not stepped.

        Returns:
            The scales of those that were.

        Raises:
            OptimizerError: if the optimizer was not torch's Adam, or has taken no step.
        """
        scales, step = {}, 0
        for name, group, state in states:
            _check_is_adam(name, group, state)
            if state:
                scales[name] = _scale(name, group, state)
                step = max(step, int(state["step"]))
        if not scales:
            raise OptimizerError(
                "The optimizer has no state of any parameter of the model: it has taken no step, "
                "or is that of another model. Read it after training."
            )
        return cls(scales, step)

    def rows(self, blocks: Blocks) -> BlockVectors:
        """The scales as rows of gradients are.

        Args:
            blocks: of parameters.

        Returns:
            For each block its scales, (1, d_l).

        Raises:
            OptimizerError: if a parameter has none, or one of another shape.
        """
        absent = [name for name in blocks.shapes if name not in self.scales]
        if absent:
            raise OptimizerError(
                f"The optimizer has no state of {len(absent)} parameters that are in blocks: "
                f"{some(absent)}. It did not train "
                "them: leave them out of the blocks, or leave the preconditioner out."
            )
        for name, shape in blocks.shapes.items():
            if self.scales[name].shape != shape:
                raise OptimizerError(
                    f"The optimizer's state of '{name}' has the shape "
                    f"{tuple(self.scales[name].shape)}, and the parameter {tuple(shape)}. Take the "
                    "state that the training of this model left."
                )
        return blocks.gather({name: self.scales[name][None] for name in blocks.shapes})

    def times(self, vectors: Mapping[str, Tensor], blocks: Blocks) -> BlockVectors:
        """Vectors of the scaled coordinates, as what gradients are multiplied with: scaled again.

        Args:
            vectors: for each block vectors as rows, (B, d_l).
            blocks: theirs.

        Returns:
            The same times the scales.
        """
        return _times(vectors, self.rows(blocks))

    def told(self, blocks: Blocks) -> dict[str, str | int]:
        """What tells these coordinates from others, as JSON holds it.

        Args:
            blocks: of parameters that take part.

        Returns:
            The kind, the `step`, and a `checksum` of the scales of the blocks.
        """
        digest = blake2b(digest_size=8)
        for name in blocks.shapes:
            digest.update(name.encode())
            digest.update(as_bytes(self.scales[name]))
        return {"kind": "adam", "step": self.step, "checksum": digest.hexdigest()}


class PreconditionedEngine(LossGradientEngine):
    """Rows in Adam's coordinates.

    Args:
        engine: computes gradients.
        scales: for each block what they are multiplied by, (1, d_l).
    """

    def __init__(self, engine: LossGradientEngine, scales: BlockVectors):
        self.engine, self.scales = engine, scales

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes what the other engine does, and multiplies the gradients by the scales."""
        rows = self.engine.rows_with_losses(batch)
        # Kept where they are needed next; of the same device and dtype nothing is copied.
        self.scales = OrderedDict((block, s.to(rows[block])) for block, s in self.scales.items())
        return OrderedDict(rows, **_times({b: rows[b] for b in self.scales}, self.scales))


def _times(vectors: Mapping[str, Tensor], scales: BlockVectors) -> BlockVectors:
    return OrderedDict((block, v * scales[block].to(v)) for block, v in vectors.items())


def _scale(name: str, group: Settings, state: Mapping[str, Any]) -> Tensor:
    """(√v̂ + ε)^(-1/2), in float32 at least."""
    v = state["exp_avg_sq"].detach()
    v = v.to(torch.promote_types(v.dtype, torch.float32))
    corrected = v / (1 - group["betas"][1] ** int(state["step"]))
    scale: Tensor = (corrected.sqrt() + group["eps"]).rsqrt()
    if not scale.isfinite().all():
        raise OptimizerError(
            f"The optimizer's state of '{name}' gives scales that are not finite: it is not finite "
            f"itself, or zero where ε is {group['eps']}. Leave the parameter out of the blocks, or "
            "the preconditioner."
        )
    return scale


def _check_is_adam(name: str, group: Settings, state: Mapping[str, Any]) -> None:
    """Refuses other optimizers, by what they keep and are set to."""
    known = {"betas", "eps", "amsgrad"} <= group.keys()  # RAdam keeps the same, and no amsgrad
    if known and not group["amsgrad"] and (not state or state.keys() == STATE):
        return
    kept = ", ".join(sorted(map(str, state))) or "nothing"
    raise OptimizerError(
        f"The optimizer is not torch's Adam: of '{name}' it keeps {kept}, and its settings are "
        f"{', '.join(sorted(map(str, group)))}. {OTHERS}"
    )
