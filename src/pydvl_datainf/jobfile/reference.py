"""What the reference of a preference says, computed once and kept with the result."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pydvl_datainf.errors import DataInfError
from pydvl_datainf.huggingface import InfluenceBuilder, TokenSamples
from pydvl_datainf.jobfile.material import Material, Side
from pydvl_datainf.objectives import reference_log_probabilities
from pydvl_datainf.run import InfluenceRun

KEYS = ("ref_chosen_logps", "ref_rejected_logps")


def with_reference(
    material: Material, builder: InfluenceBuilder, store: str, batch_size: int
) -> Material:
    """Puts the log-probabilities of the model without its adapter into the samples.

    Those that a run in the store was begun with are used again: what they were computed of is what
    that run is compared with.

    Args:
        material: pairs.
        builder: makes the tuned model.
        store: where the result goes.
        batch_size: pairs in a batch.

    Returns:
        The material, with log-probabilities in the samples and in the columns.
    """
    sides = {"test": material.test, "train": material.train}
    known = {name: _stored(store, name, len(side.samples)) for name, side in sides.items()}
    if not all(known.values()):
        model = builder().model
        known = {
            name: {
                key: values.numpy()
                for key, values in reference_log_probabilities(
                    model, side.samples.to_loader(batch_size)
                ).items()
            }
            for name, side in sides.items()
        }
    test, train = (_referenced(sides[name], known[name]) for name in ("test", "train"))
    return replace(material, test=test, train=train)


def _stored(store: str, side: Any, count: int) -> dict[str, Any]:
    """Log-probabilities of a run that is there, or nothing."""
    try:
        columns = InfluenceRun(store).metadata(side)
    except (DataInfError, ValueError, OSError):
        return {}
    found = {key: np.asarray(columns[key]) for key in KEYS if key in columns}
    return found if all(len(values) == count for values in found.values()) else {}


def _referenced(side: Side, known: Mapping[str, Any]) -> Side:
    assert isinstance(side.samples, TokenSamples)  # of pairs
    samples = [
        {**sample, **{key: float(values[i]) for key, values in known.items()}}
        for i, sample in enumerate(side.samples.samples)
    ]
    columns = {**side.columns, **{key: values.tolist() for key, values in known.items()}}
    return Side(TokenSamples(samples, side.samples.pad), columns, side.ids)
