"""The exceptions of this package: one for each thing that a caller handles differently."""


class DataInfError(Exception):
    """Base class: `except DataInfError` catches whatever this package refuses."""


class BatchError(DataInfError, ValueError):
    """A batch is neither an (x, y) pair nor a mapping of tensors, or its sizes disagree."""


class ObjectiveError(DataInfError, ValueError):
    """A loss does not give one number for each sample."""


class BlockError(DataInfError, ValueError):
    """A block structure does not fit the model's trainable parameters."""


class DampingError(DataInfError, ValueError):
    """A damping is not a positive number, names no block, or cannot be chosen automatically."""


class ModelError(DataInfError, ValueError):
    """A model has no per-sample gradients, hides them, or changed after it was fitted."""


class OptimizerError(DataInfError, ValueError):
    """The state of an optimizer is missing, that of another kind, or not that of the model."""


class SourceError(DataInfError, ValueError):
    """The training data cannot be read again, is empty, or came in another size or order."""


class NonFiniteError(ModelError):
    """A loss or gradient is infinite or NaN; `sample` is its sample's position in the batch."""

    def __init__(self, message: str, sample: int):
        super().__init__(message, sample)
        self.sample = sample

    def __str__(self) -> str:
        return str(self.args[0])


class PlanError(DataInfError, ValueError):
    """A run does not fit into the memory or the executor that it was given."""


class JobError(DataInfError, ValueError):
    """A job file or the options of a command are not valid."""


class StoreError(DataInfError, OSError):
    """A store is damaged, incomplete, locked, full, read-only or of another format."""


class StoreExistsError(StoreError, FileExistsError):
    """A store holds another run, or something else, and is not replaced."""


class ClusterError(DataInfError, RuntimeError):
    """Worker processes cannot be reached, do not suit, or were lost too often."""


class OutputExistsError(DataInfError, FileExistsError):
    """Where a file or folder is to be written there is one, and it is not replaced."""
