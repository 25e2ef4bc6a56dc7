"""The registry of methods, by the names that results have."""

from collections.abc import Mapping

from pydvl_datainf.inverse.ekfac import Ekfac
from pydvl_datainf.inverse.identity import HessianFree, ScaledHessianFree
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.inverse.sherman_morrison import DataInf
from pydvl_datainf.inverse.woodbury import Exact

DATAINF = DataInf()
EXACT = Exact()
EKFAC = Ekfac()
HESSIAN_FREE = HessianFree()
SCALED_HESSIAN_FREE = ScaledHessianFree()

METHODS: Mapping[str, Method] = {
    method.name: method for method in (DATAINF, EXACT, EKFAC, HESSIAN_FREE, SCALED_HESSIAN_FREE)
}
