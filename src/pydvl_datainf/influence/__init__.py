"""Influence functions as pyDVL knows them: DataInf, and what it is compared with."""

import warnings

with warnings.catch_warnings():
    # Importing pyDVL 0.10 announces deprecations of its own.
    warnings.simplefilter("ignore", FutureWarning)
    from pydvl_datainf.influence.arguments import Damping, Inputs
    from pydvl_datainf.influence.base import BlockwiseInfluence
    from pydvl_datainf.influence.by_name import METHODS, Method, check_method
    from pydvl_datainf.influence.datainf import DataInfInfluence
    from pydvl_datainf.influence.ekfac import EkfacInfluence
    from pydvl_datainf.influence.ensemble import EnsembleInfluence
    from pydvl_datainf.influence.exact import ExactInfluence
    from pydvl_datainf.influence.hessian_free import HessianFreeInfluence
    from pydvl_datainf.influence.lissa import LissaInfluence

__all__ = [
    "METHODS",
    "BlockwiseInfluence",
    "Damping",
    "DataInfInfluence",
    "EkfacInfluence",
    "EnsembleInfluence",
    "ExactInfluence",
    "HessianFreeInfluence",
    "Inputs",
    "LissaInfluence",
    "Method",
    "check_method",
]
