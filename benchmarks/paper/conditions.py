"""What a result depends on beside its options."""

import platform
from typing import Any

import peft
import torch
import transformers

import pydvl_datainf


def conditions() -> dict[str, Any]:
    """Versions and the machine."""
    return {
        "pydvl-datainf": pydvl_datainf.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "machine": f"{platform.machine()}, one thread of a shared CPU",
    }
