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


class SourceError(DataInfError, ValueError):
    """The training data cannot be read again, is empty, or came in another size or order."""
