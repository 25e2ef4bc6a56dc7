"""The names of the methods, in jobs and in results: what is known without their algebra.

Reading a result takes no torch, which takes seconds to import.
"""

from typing import Literal, TypeAlias

Asked: TypeAlias = Literal[
    "datainf", "exact", "ekfac", "hessian-free", "scaled-hessian-free", "lissa"
]
"""By the names that jobs and commands have for them."""

DATAINF, EXACT, EKFAC, LISSA = "DataInf", "exact", "EK-FAC", "LiSSA"
HESSIAN_FREE, SCALED_HESSIAN_FREE = "Hessian-free", "scaled Hessian-free"

NAMES = frozenset({DATAINF, EXACT, EKFAC, HESSIAN_FREE, SCALED_HESSIAN_FREE, LISSA})

UNDAMPED = frozenset({HESSIAN_FREE})
"""Those in which λ takes no part."""

WITH_SETTINGS = frozenset({LISSA})
"""Those that have settings."""

SETTINGS = "method settings"
"""The entry of a fingerprint that holds those of its method, where it has any."""
