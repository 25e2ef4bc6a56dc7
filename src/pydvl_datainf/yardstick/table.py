"""What scores are worth, as a table for the terminal."""

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pydvl_datainf.terminal import visible

if TYPE_CHECKING:
    from pydvl_datainf.yardstick.statistics import Validation


def validation_table(
    validations: Mapping[str, "Validation"],
    against: str,
    differences: Mapping[str, tuple[float, float]],
) -> Table:
    """A line for each method, and one for the ceiling.

    Args:
        validations: of each method, by name.
        against: the one of them that is described below the table.
        differences: score minus that of `against`, and its error; of the others.

    Returns:
        The table.
    """
    base = validations[against]
    table = Table(box=SIMPLE_HEAD, caption=_caption(base), caption_justify="left")
    table.add_column("scores", overflow="fold")
    for name in ("LDS", "size of changes", *(["difference in LDS"] if differences else [])):
        table.add_column(name, justify="right")
    for name, one in validations.items():
        paired = differences.get(name)
        cells = [] if not differences else [_with_error(*paired, "+") if paired else ""]
        scored = _with_error(one.lds, one.error)
        table.add_row(Text(visible(name)), scored, size_of_changes(one), *cells)
    if not isnan(base.ceiling):
        table.add_row("ceiling", f"{base.ceiling:.3f}")
    return table


def _with_error(value: float, error: float, sign: str = "") -> str:
    return "undefined" if isnan(value) else f"{value:{sign}.3f} ± {error:.3f}"


def size_of_changes(one: "Validation") -> str:
    """The slope with its error, in digits that count, however small it is.

    Args:
        one: of any method.

    Returns:
        A text.
    """
    return "undefined" if isnan(one.slope) else f"{one.slope:.2g} ± {one.slope_error:.1g}"


def _caption(one: "Validation") -> Text:
    """What the numbers were made from."""
    m, M = one.actual.shape
    text = (
        f"{M} halves of the training data, {one.seeds} retrainings of each, {m} test samples; "
        "± is a standard error over halves and test samples. Size: actual / predicted change."
    )
    if one.constant_losses:
        text += f" {one.constant_losses} test samples are left out: no retraining changed them."
    return Text(text)
