"""The influence models by the names that jobs and commands give them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from pydvl_datainf.errors import ModelError
from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.influence.datainf import DataInfInfluence
from pydvl_datainf.influence.ekfac import EkfacInfluence
from pydvl_datainf.influence.exact import ExactInfluence
from pydvl_datainf.influence.hessian_free import HessianFreeInfluence
from pydvl_datainf.influence.lissa import LissaInfluence
from pydvl_datainf.inverse.names import Asked

Method: TypeAlias = Asked

METHODS: Mapping[Method, Callable[..., BlockwiseInfluence]] = {
    "datainf": DataInfInfluence,
    "exact": ExactInfluence,
    "ekfac": EkfacInfluence,
    "hessian-free": HessianFreeInfluence,
    "scaled-hessian-free": partial(HessianFreeInfluence, scaled=True),
    "lissa": LissaInfluence,
}
"""What is called with the arguments of `DataInfInfluence`."""


def check_method(method: str) -> None:
    """Checks the name of a method.

    Args:
        method: the name.

    Raises:
        ModelError: if there is no such method.
    """
    if method not in METHODS:
        raise ModelError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
