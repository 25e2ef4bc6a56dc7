"""Before there is a plan: what the model is, and what the data holds."""

from pydvl_datainf.runner.batched_data import index_batches
from pydvl_datainf.runner.worker_inputs import Description, Inputs


def describe(_: None, inputs: Inputs) -> Description:
    """What the client must know of the model."""
    return inputs.describe()


def survey(item: tuple[str, int, int], inputs: Inputs) -> tuple[int, list[tuple[int, str]]]:
    """The first of some batches of one side, and the lengths and checksums of them all."""
    side, start, stop = item
    checked = inputs.influence.sample_rows.images.by_sample
    return start, index_batches(getattr(inputs, side), start, stop, checked)
