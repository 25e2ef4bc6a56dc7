"""The registry of methods, by the names that results have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from pydvl_datainf.inverse.ekfac import Ekfac
from pydvl_datainf.inverse.identity import HessianFree, ScaledHessianFree
from pydvl_datainf.inverse.lissa import Lissa
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.inverse.names import SETTINGS
from pydvl_datainf.inverse.sherman_morrison import DataInf
from pydvl_datainf.inverse.woodbury import Exact

DATAINF = DataInf()
EXACT = Exact()
EKFAC = Ekfac()
HESSIAN_FREE = HessianFree()
SCALED_HESSIAN_FREE = ScaledHessianFree()
LISSA = Lissa()

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (DATAINF, EXACT, EKFAC, HESSIAN_FREE, SCALED_HESSIAN_FREE, LISSA)
}
"""With their default settings."""


def method_entries(method: Method) -> dict[str, Any]:
    """What tells a method in the fingerprint of a run."""
    settings = dict(method.settings)
    return {"method": method.name} | ({SETTINGS: settings} if settings else {})


def method_of(fingerprint: Mapping[str, Any]) -> Method:
    """The method of a run.

    Args:
        fingerprint: of the run.

    Returns:
        The method with its settings.

    Raises:
        KeyError: if there is no such method.
        TypeError: if it has no such settings.
        ModelError: if a setting is out of range.
    """
    method = METHODS[fingerprint["method"]]
    return cast(Method, replace(cast(Any, method), **fingerprint.get(SETTINGS, {})))
