"""What the reference of a preference says, computed once and kept with the result."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from pydvl_datainf.errors import DataInfError
from pydvl_datainf.huggingface import InfluenceBuilder, TokenSamples
from pydvl_datainf.jobfile.data import Material, Side
from pydvl_datainf.objectives import reference_log_probabilities
from pydvl_datainf.results.reader import InfluenceRun

KEYS = ("ref_chosen_logps", "ref_rejected_logps")


def with_reference(
    material: Material,
    builder: InfluenceBuilder,
    store: str | None,
    batch_size: int,
    progress: bool,
) -> Material:
    """Puts the log-probabilities of the model without its adapter into the samples.

    Those of a run that is to go on are used again: it is compared with all that they follow from.

    Args:
        material: pairs.
        builder: makes the tuned model.
        store: where a run may have been begun; None = a new one is made.
        batch_size: pairs in a batch.
        progress: show bars on stderr.

    Returns:
        The material, with log-probabilities in the samples and in the columns.
    """
    sides = {"test": material.test, "train": material.train}
    known = {name: _stored(store, name, len(side.samples)) for name, side in sides.items()}
    if not all(known.values()):
        model = builder().model
        known = {}
        for name, side in sides.items():
            batches = side.samples.to_loader(batch_size)
            with tqdm(batches, f"reference, {name} data", leave=False, disable=not progress) as bar:
                found = reference_log_probabilities(model, bar)
            known[name] = {key: values.numpy() for key, values in found.items()}
    test, train = (_referenced(sides[name], known[name]) for name in ("test", "train"))
    return replace(material, test=test, train=train)


def _stored(store: str | None, side: Any, count: int) -> dict[str, Any]:
    """Log-probabilities of a run that is there, or nothing."""
    if store is None:
        return {}
    try:
        columns = InfluenceRun(store).metadata(side)
    except (DataInfError, ValueError, OSError):
        return {}
    found = {key: np.asarray(columns[key]) for key in KEYS if key in columns}
    return found if [len(values) for values in found.values()] == [count] * len(KEYS) else {}


def _referenced(side: Side, known: Mapping[str, Any]) -> Side:
    assert isinstance(side.samples, TokenSamples)  # of pairs
    samples = [
        {**sample, **{key: float(values[i]) for key, values in known.items()}}
        for i, sample in enumerate(side.samples.samples)
    ]
    columns = {**side.columns, **{key: values.tolist() for key, values in known.items()}}
    return Side(TokenSamples(samples, side.samples.pad), columns, side.ids)
