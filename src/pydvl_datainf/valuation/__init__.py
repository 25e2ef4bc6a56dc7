"""Influences as values of training samples: a `Valuation` of pyDVL."""

import warnings

with warnings.catch_warnings():
    # Importing pyDVL 0.10 announces deprecations of its own.
    warnings.simplefilter("ignore", FutureWarning)
    from pydvl_datainf.valuation.method import DataInfValuation
    from pydvl_datainf.valuation.values import to_valuation_result

__all__ = ["DataInfValuation", "to_valuation_result"]
