"""Influence functions as pyDVL knows them: DataInf, and what it is compared with."""

from pydvl_datainf.influence.base import BlockwiseInfluence, Damping, Inputs
from pydvl_datainf.influence.by_name import METHODS, Method, check_method
from pydvl_datainf.influence.datainf import DataInfInfluence
from pydvl_datainf.influence.ekfac import EkfacInfluence
from pydvl_datainf.influence.exact import ExactInfluence
from pydvl_datainf.influence.hessian_free import HessianFreeInfluence

__all__ = [
    "METHODS",
    "BlockwiseInfluence",
    "Damping",
    "DataInfInfluence",
    "EkfacInfluence",
    "ExactInfluence",
    "HessianFreeInfluence",
    "Inputs",
    "Method",
    "check_method",
]
