"""What a data set tells of its samples beside what the model takes: ids, texts, labels."""

from collections.abc import Mapping, Sequence
from typing import Any
from warnings import warn

from torch.utils.data import DataLoader

from pydvl_datainf.huggingface.record_values import conversation_text

SCALARS = (str, int, float, bool)
RESERVED = ("id", "tokens")
"""Columns that a result has anyway."""


class ShownLoader(DataLoader[Any]):
    """Batches in the order of a data set, with what a run stores of its samples.

    Args:
        dataset: map-style.
        batch_size: samples in a batch.
        collate_fn: makes a batch.
        columns: of the samples, such as their texts.
        ids: of the samples; None = positions.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        collate_fn: Any,
        columns: Mapping[str, Sequence[Any]],
        ids: Sequence[Any] | None,
    ):
        super().__init__(dataset, batch_size, collate_fn=collate_fn)
        self.columns = columns
        self.ids = ids


def with_shown(
    ids: Any, metadata: Any, sides: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """What a caller tells of samples, and what their loaders tell of a side of which he does not.

    Args:
        ids: by side, or None.
        metadata: by side, or None.
        sides: test or training data, or both, by side.

    Returns:
        Ids and metadata.
    """
    for side, data in sides.items():
        if not isinstance(data, ShownLoader):
            continue
        if data.ids is not None and isinstance(ids, Mapping | None):
            ids = {side: data.ids, **(ids or {})}
        if isinstance(metadata, Mapping | None):
            metadata = {side: data.columns, **(metadata or {})}
    return ids, metadata


def shown_of(data: Any, tokenizer: Any) -> tuple[dict[str, list[Any]], list[Any] | None]:
    """Columns and ids of a data set of `datasets`; of others nothing is known.

    Args:
        data: any data set.
        tokenizer: writes tokens out where there are no texts; None = it cannot be done.

    Returns:
        Columns of texts, numbers and truth values that have no gaps, conversations as texts; and
        the column `id` where it can name samples.
    """
    names = getattr(data, "column_names", None)
    if not isinstance(names, list) or not hasattr(data, "__len__") or not len(data):
        return {}, None
    plain = data.with_format(None)
    first = plain[0]
    columns = {
        name: [conversation_text(value) for value in plain[name]]
        for name in names
        if isinstance(conversation_text(first[name]), SCALARS)
    }
    ids = columns.get("id")
    kept = {
        name: values
        for name, values in columns.items()
        if name.isidentifier() and name not in RESERVED and _are_alike(values, SCALARS)
    }
    decode = getattr(tokenizer, "decode", None)
    if decode and "input_ids" in names and not any(isinstance(v[0], str) for v in kept.values()):
        kept["text"] = [decode(tokens, skip_special_tokens=True) for tokens in plain["input_ids"]]
    if ids and not (_are_alike(ids, (str, int)) and len(set(ids)) == len(ids)):
        warn(
            "The column 'id' of a data set holds no texts or whole numbers that differ, so its "
            "samples are numbered from 0.",
            stacklevel=4,  # of `influence_from_trainer`
        )
        return kept, None
    return kept, ids


def _are_alike(values: Sequence[Any], kinds: tuple[type, ...]) -> bool:
    return type(values[0]) in kinds and all(type(value) is type(values[0]) for value in values)
