"""Where each parameter is watched, and those that no place explains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from warnings import warn

from torch import nn

from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients.layers import next_around
from pydvl_datainf.terminal import visible

_T = TypeVar("_T")


class BeginAgainError(Exception):
    """A pass begins again, since parameters or inputs are treated otherwise from now on."""


@dataclass(slots=True)
class Places:
    """Where the parameters of a model are watched, as far as it was tried.

    First at their own layers; where those do not explain them, where what follows from them is
    joined to the samples; then at modules around their own; at last nowhere.

    Args:
        model: whose parameters they are.
        strict: raise in place of leaving parameters to one backward pass per sample.
        joints: for parameters that were tried at their joints, whether they still are.
        around: paths of the modules around their own at which others are watched.
        unexplained: parameters that get one backward pass per sample.
        reasons: why their own layers do not explain them.
    """

    model: nn.Module
    strict: bool
    joints: dict[str, bool] = field(default_factory=dict)
    around: dict[str, str] = field(default_factory=dict)
    unexplained: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    def explained(self, values: Mapping[str, _T]) -> dict[str, _T]:
        """What belongs, by name, to parameters that do not get one backward pass per sample."""
        return {name: value for name, value in values.items() if name not in self.unexplained}

    def give_up(self, names: Iterable[str], reason: str) -> None:
        """Watches parameters elsewhere, or leaves them, where every other place was tried.

        Args:
            names: of parameters that are not explained where they are watched.
            reason: for which they are not.

        Raises:
            BeginAgainError: if any is watched elsewhere from now on.
        """
        new = sorted(set(names) - self.unexplained)
        if not new:
            return
        self.reasons = dict.fromkeys(new, reason) | self.reasons
        untried = dict.fromkeys(set(new) - self.joints.keys(), True)
        self.joints |= dict.fromkeys(new, False) | untried
        around = {n: next_around(self.model, n, self.around.get(n)) for n in new}
        found = {n: path for n, path in around.items() if path is not None and n not in untried}
        self.around |= found
        if untried or found:
            raise BeginAgainError
        self.leave(new, reason)

    def leave(self, names: Iterable[str], reason: str) -> None:
        """Leaves parameters to one backward pass per sample.

        Args:
            names: of the parameters.
            reason: for which those are left for which none is known.

        Raises:
            ModelError: if that is not wanted.
        """
        new = sorted(set(names) - self.unexplained)
        if not new:
            return
        self.reasons = dict.fromkeys(new, reason) | self.reasons
        first = {self.reasons[n] for n in new}
        groups = [(r, [n for n in new if self.reasons[n] == r]) for r in sorted(first)]
        told = "; ".join(f"{len(g)} parameters ({', '.join(g)}), because {r}" for r, g in groups)
        if self.strict:
            raise ModelError(
                f'Capture cannot explain {told}. Use gradients="auto" or "functional".'
            )
        self.unexplained |= set(new)
        told = visible(
            f"One backward pass per sample for {told}. This is exact, but slower. Freeze these "
            "parameters, or leave them out with a block_structure, to avoid it."
        )
        warn(told, stacklevel=2)
