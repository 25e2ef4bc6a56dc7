"""What a run keeps of comparisons: with the exact inverse, and of compressed with whole rows."""

from dataclasses import dataclass

from pydvl_datainf.errors import StoreError
from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.results.layout import comparison_in
from pydvl_datainf.results.record import APPROXIMATION
from pydvl_datainf.results.stored import Stored


@dataclass(frozen=True, slots=True)
class CompressionError:
    """How far influences from compressed rows are from those of whole rows, on a sample.

    The inverse of the run's method was taken over some training samples, from their whole rows and
    from their coordinates, and influences of others of up to 64 on up to 32 test samples from both,
    before `normalize` divides them.

    Args:
        score_error: ‖S − T‖/‖T‖ of the influences S from coordinates and T from whole rows, or
            from those behind side bases where there are some.
        rank_correlation: Spearman's, of a test sample's influences in S and T, averaged over test
            samples; 1 where there is no order to lose: one training sample, or copies of one.
    """

    score_error: float
    rank_correlation: float


def compression_error_in(store: Stored) -> CompressionError | None:
    """What compression of the training rows changes.

    Args:
        store: of a run, which was opened.

    Returns:
        It; None where rows are whole, or it is not there.
    """
    if "compression_error" not in store.layouts:
        return None
    return CompressionError(*store.read("compression_error").tolist())


def approximation_error_in(store: Stored) -> ApproximationError:
    """How far an inverse is from the exact one.

    Args:
        store: of a run that compared them.

    Returns:
        What was found.

    Raises:
        StoreError: if it is damaged.
    """
    told = comparison_in(store)
    if told is None:
        raise StoreError(f"The metadata of '{APPROXIMATION}' in {store} are damaged.{store.repair}")
    errors, cosines = store.read(APPROXIMATION)
    return ApproximationError(
        blocks=tuple(store.read("block").tolist()),
        errors=errors,
        cosines=cosines,
        widths=store.read("width"),
        damping=store.read("damping"),
        n=told["n"],
        m=told["m"],
        score_error=told["score_error"],
        rank_correlation=told["rank_correlation"],
    )
