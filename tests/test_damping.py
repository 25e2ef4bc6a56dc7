"""Damping: what the caller may ask for, and the paper's rule."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import dense
from pydvl_datainf import DampingError
from pydvl_datainf.inverse.damping import (
    Regularization,
    SquaredNorms,
    automatic_damping,
    check_representable,
)

BLOCKS = ["a", "b"]


def test_auto_gives_no_numbers():
    assert Regularization.parse("auto", BLOCKS).given == {}
    assert not Regularization.parse("auto", BLOCKS).is_complete(BLOCKS)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), Fraction(2)])
def test_a_number_holds_for_all_blocks(value):
    regularization = Regularization.parse(value, BLOCKS)
    assert regularization.given == {"a": 2.0, "b": 2.0}
    assert regularization.is_complete(BLOCKS)


def test_a_mapping_may_leave_blocks_out():
    regularization = Regularization.parse({"b": 3}, BLOCKS)
    assert regularization.given == {"b": 3.0}
    assert not regularization.is_complete(BLOCKS)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, float("nan"), float("inf"), True, None, "big", 1j, [1.0], {"a": 0}, {"a": "x"}],
)
def test_what_is_not_a_positive_number_is_refused(value):
    with pytest.raises(DampingError, match="positive"):
        Regularization.parse(value, BLOCKS)


def test_an_unknown_block_is_named_with_those_that_exist():
    with pytest.raises(DampingError, match=r"\['c'\].*\['a', 'b'\]"):
        Regularization.parse({"a": 1.0, "c": 1.0}, BLOCKS)


def test_the_papers_rule():
    rows = torch.randn(5, 3, dtype=torch.float64)
    norms = SquaredNorms({"a": float((rows**2).sum())}, n=5)
    damping = automatic_damping(norms, {"a": 3}, ["a"], torch.float64)
    assert damping == {"a": pytest.approx(dense.automatic_damping(rows), rel=1e-12)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_of_rounding_noise_is_refused_by_name(dtype):
    """Just below and just above 16 machine epsilons of the largest block's root mean square."""
    below, above = (factor * 16 * torch.finfo(dtype).eps for factor in (0.9, 1.1))
    widths = {"big": 4, "small": 2}
    quiet = SquaredNorms({"big": 4.0 * 3, "small": 2 * 3 * below**2}, n=3)
    with pytest.raises(DampingError, match=r"1 of 2 blocks.*\['small'\].*Freeze"):
        automatic_damping(quiet, widths, ["big", "small"], dtype)
    loud = SquaredNorms({"big": 4.0 * 3, "small": 2 * 3 * above**2}, n=3)
    damping = automatic_damping(loud, widths, ["big", "small"], dtype)
    assert damping["small"] == pytest.approx(0.1 * above**2)


def test_a_block_with_a_damping_of_its_own_may_be_noise():
    norms = SquaredNorms({"big": 1.0, "zero": 0.0}, n=1)
    damping = automatic_damping(norms, {"big": 1, "zero": 1}, ["big"], torch.float32)
    assert damping == {"big": pytest.approx(0.1)}


def test_all_gradients_zero_is_refused():
    norms = SquaredNorms({"a": 0.0}, n=2)
    with pytest.raises(DampingError, match="zero up to rounding"):
        automatic_damping(norms, {"a": 1}, ["a"], torch.float32)


@pytest.mark.parametrize("λ", [1e-39, 1e39])
def test_a_damping_that_float32_cannot_hold_is_refused(λ):
    with pytest.raises(DampingError, match="out of the range"):
        check_representable({"a": λ}, torch.float32)
    check_representable({"a": λ}, torch.float64)
