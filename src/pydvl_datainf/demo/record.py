"""The scores on disk: a Zarr v3 group that says what was computed, and that xarray opens."""

import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pydvl_datainf._version import __version__
from pydvl_datainf.demo.packages import MODEL_PACKAGE, MODEL_SHA256, REVIEWS_PACKAGE
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.reviews import LABELS, Reviews

CHUNK = 1024
"""Largest length of a chunk in each direction: 4 MiB of scores."""


def write_record(path: Path, result: DemoResult) -> None:
    """Writes scores, texts, labels and attributes.

    The group holds `scores` (test, train), `self_influences`, `hessian_free` and `losses`
    (train), and for each side `text`, `label` and `flipped`, named `train_text` and so on.

    Args:
        path: where the group is made; must not exist.
        result: what to write.

    Raises:
        ValueError: if a score is not finite, since NaN marks what was never written.
    """
    scores = {
        "scores": result.scores.influences,
        "self_influences": result.scores.self_influences,
        "hessian_free": result.scores.hessian_free,
        "losses": result.scores.losses,
    }
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite, so nothing was written")
    group = zarr.create_group(str(path), zarr_format=3, attributes=attributes(result))
    for name, values in scores.items():
        _write(group, name, values, ("test", "train")[-values.ndim :])
    for side, reviews in (("test", result.test), ("train", result.train)):
        _write_reviews(group, side, reviews)
    _consolidate(group)


def attributes(result: DemoResult) -> dict[str, Any]:
    """What was computed, in words and numbers that JSON can hold.

    Args:
        result: what was computed.

    Returns:
        Attributes of the group.
    """
    return {
        "title": "DataInf influences of training reviews (train) on test reviews (test)",
        "sign": "positive: more weight on the training review lowers the test review's loss",
        "inverse": "DataInf: mean over training reviews of (g gᵀ + λ I)⁻¹, block by block",
        "loss": "cross entropy of one review, in nats",
        "damping_rule": "0.1 times the mean square of the block's per-review gradients",
        "damping": dict(result.damping),
        "n_parameters": result.n_parameters,
        "labels": list(LABELS),
        "model": {"package": MODEL_PACKAGE, "sha256": MODEL_SHA256, "lora": ["query", "value"]},
        "reviews": REVIEWS_PACKAGE,
        "settings": asdict(result.settings),
        "test_accuracy": result.accuracy,
        "mislabel_auc": result.aucs(),
        "versions": {
            "pydvl-datainf": __version__,
            **{p: version(p) for p in ("torch", "peft", "transformers")},
        },
        "coordinates": " ".join(
            f"{side}_{name}" for side in ("test", "train") for name in ("text", "label", "flipped")
        ),
    }


def _write_reviews(group: zarr.Group, side: str, reviews: Reviews) -> None:
    _write(group, f"{side}_text", reviews.texts, (side,), dtype="string")
    _write(group, f"{side}_label", reviews.labels.astype(np.int8), (side,))
    _write(group, f"{side}_flipped", reviews.flipped, (side,))


def _write(
    group: zarr.Group,
    name: str,
    values: npt.NDArray[Any],
    dimensions: tuple[str, ...],
    dtype: str | None = None,
) -> None:
    is_score = np.issubdtype(values.dtype, np.floating)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=dtype or values.dtype,
        chunks=tuple(min(CHUNK, size) for size in values.shape),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=np.nan if is_score else None,
        dimension_names=dimensions,
    )
    array[...] = values


def _consolidate(group: zarr.Group) -> None:
    # Without consolidated metadata xarray warns on opening; with it, zarr warns on writing.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group.store)
