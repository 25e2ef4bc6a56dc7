"""Damping: what the caller may ask for, and the paper's rule."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import dense
from pydvl_datainf import DampingError
from pydvl_datainf.inverse.damping import (
    SquaredNorms,
    automatic_damping,
    check_representable,
    given_damping,
    resolve_damping,
)

BLOCKS = ["a", "b"]


def test_auto_gives_no_numbers():
    assert given_damping("auto", BLOCKS) == {}


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), Fraction(2)])
def test_a_number_holds_for_all_blocks(value):
    assert given_damping(value, BLOCKS) == {"a": 2.0, "b": 2.0}


def test_a_mapping_may_leave_blocks_out():
    assert given_damping({"b": 3}, BLOCKS) == {"b": 3.0}


@pytest.mark.parametrize(
    "value",
    [0, -1.0, float("nan"), float("inf"), True, None, "big", 1j, [1.0], {"a": 0}, {"a": "x"}],
)
def test_what_is_not_a_positive_number_is_refused(value):
    with pytest.raises(DampingError, match="positive"):
        given_damping(value, BLOCKS)


def test_an_unknown_block_is_named_with_those_that_exist():
    with pytest.raises(DampingError, match=r"\['c'\].*\['a', 'b'\]"):
        given_damping({"a": 1.0, "c": 1.0}, BLOCKS)


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


# λ of every block


NORMS = SquaredNorms({"a": 12.0, "b": 4.5}, n=3)
WIDTHS = {"b": 5, "a": 2}


def test_damping_is_given_or_automatic_in_the_order_of_the_blocks():
    found = resolve_damping({"a": 0.25}, NORMS, WIDTHS, torch.float32)
    assert list(found.items()) == [("b", pytest.approx(0.1 * 4.5 / 15)), ("a", 0.25)]


def test_all_given_needs_no_norms():
    found = resolve_damping({"a": 0.25, "b": 3.0}, None, WIDTHS, torch.float32)
    assert list(found.items()) == [("b", 3.0), ("a", 0.25)]


def test_a_block_that_is_given_may_be_noise_and_one_that_is_not_may_not():
    norms = SquaredNorms({"a": 12.0, "b": 0.0}, n=3)
    assert resolve_damping({"b": 1.0}, norms, WIDTHS, torch.float32)["b"] == 1.0
    with pytest.raises(DampingError, match=r"zero up to rounding.*\['b'\]"):
        resolve_damping({"a": 1.0}, norms, WIDTHS, torch.float32)


def test_an_adapter_that_was_never_tuned_is_named_as_such():
    widths = {f"layer.{i}.lora_{ab}": 4 for i in range(7) for ab in "AB"}
    untuned = SquaredNorms({name: 12.0 * ("lora_B" in name) for name in widths}, n=3)
    with pytest.raises(DampingError, match=r"'layer\.4\.lora_A'\] and 2 more\. .*tune them first"):
        resolve_damping({}, untuned, widths, torch.float32)
    other = SquaredNorms({name: 12.0 * ("0.lora" not in name) for name in widths}, n=3)
    with pytest.raises(DampingError, match=r"'layer\.0\.lora_B'\]\. Freeze"):
        resolve_damping({}, other, widths, torch.float32)


@pytest.mark.parametrize("given", [{"a": 1e-39}, {"a": 1e39}])
def test_a_damping_that_is_lost_in_the_dtype_is_refused(given):
    with pytest.raises(DampingError, match=r"out of the range of torch\.float32"):
        resolve_damping(given, NORMS, WIDTHS, torch.float32)
    assert resolve_damping(given, NORMS, WIDTHS, torch.float64)["a"] == given["a"]
