"""How well scores find what is known to be wrong: numpy arrays in, numbers out.

Suspicion is a number for each training sample, larger for samples that look more harmful. With
the package's sign (a positive influence is helpful) that is minus an influence; a self-influence
and a training loss are suspicions as they are.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.intp]
Classes: TypeAlias = npt.NDArray[Any]


def as_array(values: Any) -> npt.NDArray[Any]:
    """Values as an array of NumPy.

    Args:
        values: an array or what is like one; tensors may be on any device and need gradients.

    Returns:
        The same values; of bfloat16, which NumPy has not, in float32.

    Raises:
        ValueError: if some are masked.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.float() if "bfloat16" in str(values.dtype) else values)
    if isinstance(values, np.ma.MaskedArray) and np.any(values.mask):
        raise ValueError("Some entries of an array are masked. Fill them, or leave them out.")
    return np.asarray(values)


def mislabel_auc(suspicion: Floats, mislabelled: Mask) -> float:
    """The chance that a mislabelled sample is more suspicious than a clean one, ties counting half.

    This is the area under the ROC curve: 0.5 is what guessing gives, 1 is perfect.

    Args:
        suspicion: one number for each sample, (n,), finite.
        mislabelled: which samples carry a wrong label, (n,); some, but not all of them.

    Returns:
        The area, between 0 and 1.

    Raises:
        ValueError: if the shapes differ, or if all samples or none are mislabelled.

    Examples:
        >>> mislabel_auc(np.array([0.1, 0.7, 0.4, 0.9]), np.array([False, True, False, True]))
        1.0
    """
    suspicion, mislabelled = as_array(suspicion), as_array(mislabelled)
    if suspicion.shape != mislabelled.shape:
        raise ValueError(
            f"one suspicion for each sample is needed, but suspicion has shape {suspicion.shape} "
            f"and mislabelled {mislabelled.shape}"
        )
    if mislabelled.all() or not mislabelled.any():
        raise ValueError(
            f"the AUC needs mislabelled and clean samples, but {mislabelled.sum()} of "
            f"{mislabelled.size} are mislabelled"
        )
    from sklearn.metrics import roc_auc_score  # reading a run needs the rest, and no sklearn

    return float(roc_auc_score(mislabelled, suspicion))


def relative_influence(influence: Floats, self_influence: Floats) -> Floats:
    """Influence / √self-influence: what a sample does, set against what it could do at most.

    Barshan, Brunet and Dziugaite, "RelatIF: Identifying Explanatory Training Samples via Relative
    Influence", AISTATS 2020. Plain influences are led by outliers with large gradients; these
    are not.

    Args:
        influence: influences with the training samples last, (..., n).
        self_influence: each training sample's influence on itself, (n,), not negative.

    Returns:
        Relative influences, (..., n); 0 where the self-influence is 0, since the gradient is.

    Raises:
        ValueError: if a self-influence is negative.

    Examples:
        >>> relative_influence(np.array([6.0, -1.0, 0.0]), np.array([9.0, 0.25, 0.0]))
        array([ 2., -2.,  0.])
    """
    influence, self_influence = as_array(influence), as_array(self_influence)
    if (self_influence < 0).any():
        raise ValueError(
            f"a self-influence is never negative under a positive definite inverse, but the "
            f"smallest one is {self_influence.min():g}; check the damping"
        )
    root = np.sqrt(self_influence)
    return np.divide(influence, root, out=np.zeros_like(influence), where=root > 0)


def suspicion_ranks(training_loss: Floats, relative: Floats) -> Floats:
    """How suspicious each label is by two views at once: a high loss, and harm to others.

    (R(loss_k) + R(-relative_k)) / 2, where R is the rank among the n training samples: 1 for the
    smallest, n for the largest, and for equal ones the average of their ranks. Neither the scale of
    losses nor that of influences counts.

    Args:
        training_loss: of each training sample, (n,), finite.
        relative: relative influence of each training sample, (n,), finite: its mean influence on
            the test samples by `relative_influence`, positive where it helps.

    Returns:
        Average ranks, (n,), between 1 and n; the larger, the more suspicious.

    Raises:
        ValueError: if the shapes are not (n,), or a number is not finite.

    Examples:
        >>> suspicion_ranks(np.array([0.1, 0.9, 0.9]), np.array([0.2, -3.0, 0.5]))
        array([1.5 , 2.75, 1.75])
    """
    loss, relative = as_array(training_loss), as_array(relative)
    if loss.ndim != 1 or loss.shape != relative.shape:
        raise ValueError(
            f"one training loss and one relative influence for each sample are needed, but they "
            f"have shapes {loss.shape} and {relative.shape}"
        )
    bad = int((~(np.isfinite(loss) & np.isfinite(relative))).sum())
    if bad:
        raise ValueError(f"{bad} samples have a loss or a relative influence that is not finite")
    return (_average_ranks(loss) + _average_ranks(-relative)) / 2


def _average_ranks(values: Floats) -> Floats:
    """As `scipy.stats.rankdata`, which takes longer to import than results to read."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks


def class_auc(influences: Floats, query_classes: Classes, training_classes: Classes) -> Floats:
    """For each query the chance that a training sample of its class is put before another one.

    This is the area under the ROC curve of the influences of all training samples on the query
    against "same class as the query": 0.5 is what guessing gives, 1 is perfect, ties count half.
    The mean over queries is the class detection AUC of Kwon et al., "DataInf", ICLR 2024.

    Args:
        influences: influence of each training sample on each query, positive where it helps,
            (m, n), finite.
        query_classes: the class of each query, a number or a name, (m,).
        training_classes: the class of each training sample, (n,).

    Returns:
        Areas between 0 and 1, (m,).

    Raises:
        ValueError: if the shapes do not fit, if an influence is not finite, or if a query has all
            or none of the training samples in its class.

    Examples:
        >>> influences = np.array([[0.9, 0.1, 0.3, 0.2], [0.4, 0.5, 0.1, 0.2]])
        >>> class_auc(influences, np.array(["a", "b"]), np.array(["a", "a", "b", "b"]))
        array([0.5, 0. ])
    """
    from sklearn.metrics import roc_auc_score

    influences = as_array(influences)
    same = _same_class(influences, as_array(query_classes), as_array(training_classes))
    return np.array([roc_auc_score(own, row) for own, row in zip(same, influences, strict=True)])


def class_recall(influences: Floats, query_classes: Classes, training_classes: Classes) -> Floats:
    """For each query the share of its own class among its s most helpful training samples.

    s is the number of training samples of that class, so 1 is perfect, and guessing gives s/n on
    average. Of equal influences the first ones come first. The mean over queries is the
    recall of Kwon et al., "DataInf", ICLR 2024.

    Args:
        influences: influence of each training sample on each query, positive where it helps,
            (m, n), finite.
        query_classes: the class of each query, a number or a name, (m,).
        training_classes: the class of each training sample, (n,).

    Returns:
        Shares between 0 and 1, (m,).

    Raises:
        ValueError: if the shapes do not fit, if an influence is not finite, or if a query has all
            or none of the training samples in its class.

    Examples:
        >>> influences = np.array([[0.9, 0.1, 0.3, 0.2], [0.4, 0.5, 0.1, 0.2]])
        >>> class_recall(influences, np.array(["a", "b"]), np.array(["a", "a", "b", "b"]))
        array([0.5, 0. ])
    """
    influences = as_array(influences)
    same = _same_class(influences, as_array(query_classes), as_array(training_classes))
    return np.array(
        [own[largest(row, own.sum())].mean() for own, row in zip(same, influences, strict=True)]
    )


def _same_class(influences: Floats, query_classes: Classes, training_classes: Classes) -> Mask:
    """Which training samples are of each query's class, (m, n)."""
    expected = (*query_classes.shape, *training_classes.shape)
    if influences.ndim != 2 or influences.shape != expected:
        raise ValueError(
            f"influences need a row for each query and a column for each training sample, but have "
            f"shape {influences.shape}, with classes of {query_classes.shape} queries and "
            f"{training_classes.shape} training samples"
        )
    if not np.isfinite(influences).all():
        raise ValueError(f"{(~np.isfinite(influences)).sum()} influences are not finite")
    same: Mask = query_classes[:, None] == training_classes
    alone = same.all(axis=1) | ~same.any(axis=1)
    if alone.any():
        raise ValueError(
            f"each query needs training samples of its class and of others, but those of class "
            f"{query_classes[alone][0]!s} have {same[alone][0].sum()} of {same.shape[1]}; leave "
            f"such queries out"
        )
    return same


def largest(values: Floats, k: int) -> Indices:
    """Where the k largest values are, largest first; of equal ones the first comes first.

    Args:
        values: numbers, (n,).
        k: how many are wanted; at most n are given.

    Returns:
        Positions in `values`, (min(k, n),).

    Examples:
        >>> largest(np.array([0.5, 2.0, -1.0, 2.0]), 3)
        array([1, 3, 0])
    """
    return np.argsort(-as_array(values), kind="stable")[:k]
