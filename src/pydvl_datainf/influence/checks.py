"""What an influence call is checked for before it computes."""

from collections.abc import Mapping

from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException

from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.fingerprint import differences


def check_mode(mode: InfluenceMode | str) -> InfluenceMode:
    """The mode by its name; pyDVL's own error where there is none."""
    try:
        return InfluenceMode(mode)
    except ValueError:
        raise UnsupportedInfluenceModeException(mode) from None


def changed_by_itself(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Names of what a forward pass changed in a model; new caches are fine."""
    return [name for name in differences(before, after) if name in before]


def check_own_buffers(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Raises if the forward pass itself changed what the model contains."""
    changed = changed_by_itself(before, after)
    if changed:
        raise ModelError(
            f"The model's own forward pass changes {', '.join(changed[:5])} each time, so its "
            "gradients differ from call to call. Switch that off, for instance with model.eval()."
        )


def check_order(is_fixed: bool) -> None:
    """Raises where results per sample could not be told apart."""
    if not is_fixed:
        raise SourceError(
            "The loader yields the samples in random order, so results per sample could not be "
            "told apart. Use a DataLoader with shuffle=False (fit alone accepts any order)."
        )
