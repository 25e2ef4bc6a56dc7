"""Reports: the plots of blocks and their shares."""

import re
from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest

from pydvl_datainf.report.pictures import MOST_BLOCKS, blocks_picture, shares_picture, shown_blocks


@pytest.mark.parametrize(("by_error", "expected"), [(False, "ends"), (True, "errors")])
def test_of_many_blocks_the_picture_shows_the_ends(plain, by_error, expected):
    values = np.random.default_rng(0).permutation(200) + 1.0
    error = type("Error", (), {"errors": values})() if by_error else None
    shown = np.array(shown_blocks(values, error))
    assert len(shown) == MOST_BLOCKS
    assert (np.diff(shown) > 0).all()
    half = MOST_BLOCKS // 2
    wanted = {
        "errors": range(200 - MOST_BLOCKS + 1, 201),
        "ends": [*range(1, half + 1), *range(200 - half + 1, 201)],
    }[expected]
    assert sorted(values[shown]) == list(wanted)


def svg_of(picture):
    return ElementTree.fromstring(b64decode(picture.light.partition(",")[2]))


def axes_widths(picture):
    """Widths of the backgrounds of axes, in points."""
    found = svg_of(picture).findall(".//{*}g[@id='patch_2']/{*}path")
    corners = [np.array(re.findall(r"[\d.]+", path.get("d")), dtype=float) for path in found]
    return [np.ptp(numbers[::2]) for numbers in corners]


@pytest.mark.parametrize(
    "draw",
    [
        lambda names: blocks_picture(names, np.array([1.0, 2.0]), None),
        lambda names: shares_picture(names, np.arange(24.0).reshape(3, 2, 4)),
    ],
    ids=["damping", "shares"],
)
def test_long_names_leave_room_for_the_picture(draw):
    (short,), (long,) = (axes_widths(draw(["q" * k, "r" * k])) for k in (60, 300))
    assert short > 50  # premise: names of this length leave room
    assert long == pytest.approx(short, rel=0.1)


@pytest.mark.parametrize("character", ["\ufffe", "\uffff", "\x01"])
def test_pictures_of_any_names_are_valid_svg(character):
    picture = blocks_picture([f"a{character}", "b"], np.array([1.0, 2.0]), None)
    assert svg_of(picture).tag.endswith("svg")
