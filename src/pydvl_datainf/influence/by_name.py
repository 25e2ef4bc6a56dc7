"""The influence models by the names that jobs and commands give them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeAlias

from pydvl_datainf.influence.blockwise import BlockwiseInfluence
from pydvl_datainf.influence.datainf import DataInfInfluence
from pydvl_datainf.influence.exact import ExactInfluence
from pydvl_datainf.influence.hessian_free import HessianFreeInfluence

Method: TypeAlias = Literal["datainf", "exact", "hessian-free", "scaled-hessian-free"]

METHODS: Mapping[Method, Callable[..., BlockwiseInfluence]] = {
    "datainf": DataInfInfluence,
    "exact": ExactInfluence,
    "hessian-free": HessianFreeInfluence,
    "scaled-hessian-free": partial(HessianFreeInfluence, scaled=True),
}
"""What is called with the arguments of `DataInfInfluence`."""
