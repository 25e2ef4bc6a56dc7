import numpy as np
import pytest
from scipy.stats import rankdata

from pydvl_datainf.evaluation import (
    class_auc,
    class_recall,
    largest,
    mislabel_auc,
    relative_influence,
    suspicion_ranks,
)

MISLABELLED = np.array([False, True, False, True])


@pytest.mark.parametrize(
    ("suspicion", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 3 / 4),  # of the pairs (2, 1) (2, 3) (4, 1) (4, 3) one is wrong
        ([4.0, 3.0, 2.0, 1.0], 1 / 4),
        ([1.0, 3.0, 2.0, 2.0], 3.5 / 4),  # (2, 2) counts half
        ([5.0, 5.0, 5.0, 5.0], 1 / 2),
        ([0.0, 1.0, 0.0, 1.0], 1.0),
    ],
)
def test_auc_is_the_share_of_pairs_in_the_right_order(suspicion, expected):
    assert mislabel_auc(np.array(suspicion), MISLABELLED) == pytest.approx(expected, abs=1e-15)


def test_auc_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(3,\) and mislabelled \(4,\)"):
        mislabel_auc(np.zeros(3), MISLABELLED)


@pytest.mark.parametrize("mislabelled", [np.zeros(3, dtype=bool), np.ones(3, dtype=bool)])
def test_auc_refuses_one_kind_of_samples_only(mislabelled):
    with pytest.raises(ValueError, match=f"{mislabelled.sum()} of 3 are mislabelled"):
        mislabel_auc(np.arange(3.0), mislabelled)


def test_relative_influence_divides_columns_by_the_root():
    influence = np.array([[6.0, -1.0, 0.0], [-3.0, 0.5, 0.0]])
    relative = relative_influence(influence, np.array([9.0, 0.25, 0.0]))
    np.testing.assert_array_equal(relative, [[2.0, -2.0, 0.0], [-1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(influence, [[6.0, -1.0, 0.0], [-3.0, 0.5, 0.0]])


def test_relative_influence_refuses_negative_self_influence():
    with pytest.raises(ValueError, match=r"smallest one is -0\.5"):
        relative_influence(np.ones(2), np.array([1.0, -0.5]))


@pytest.mark.parametrize(
    ("loss", "relative", "expected"),
    [
        ([0.1, 0.5, 0.9], [3.0, 2.0, -1.0], [1.0, 2.0, 3.0]),
        ([0.1, 0.5, 0.9], [-3.0, 0.0, 3.0], [2.0, 2.0, 2.0]),  # what one says, the other denies
        ([0.5, 0.5, 0.5], [0.0, 0.0, -1e-9], [1.75, 1.75, 2.5]),  # ties are averaged
        ([7.0], [0.0], [1.0]),
        ([], [], []),
    ],
)
def test_suspicion_is_the_average_of_both_ranks(loss, relative, expected):
    found = suspicion_ranks(np.array(loss), np.array(relative))
    np.testing.assert_array_equal(found, expected)


def test_scales_do_not_change_suspicion():
    loss, relative = np.random.default_rng(1).normal(size=(2, 20))
    found = suspicion_ranks(np.exp(loss), 1e6 * relative)
    np.testing.assert_array_equal(found, suspicion_ranks(loss, relative))
    assert not np.array_equal(found, suspicion_ranks(loss, -relative))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (2, 3))])
def test_suspicion_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="one training loss and one relative influence"):
        suspicion_ranks(*map(np.zeros, shapes))


def test_suspicion_of_ties_is_that_of_their_average_ranks():
    loss, relative = np.random.default_rng(0).integers(0, 5, (2, 40)).astype(float)
    expected = (rankdata(loss) + rankdata(-relative)) / 2
    np.testing.assert_array_equal(suspicion_ranks(loss, relative), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_suspicion_refuses_what_has_no_rank(value):
    with pytest.raises(ValueError, match="1 samples have a loss or a relative influence"):
        suspicion_ranks(np.array([1.0, value]), np.zeros(2))


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (3, [1, 3, 0]), (9, [1, 3, 0, 2])])
def test_largest_come_first_and_ties_in_order(k, expected):
    np.testing.assert_array_equal(largest(np.array([0.5, 2.0, -1.0, 2.0]), k), expected)


QUERY_CLASSES = np.array(["b", "a", "c", "b", "a"])
TRAINING_CLASSES = np.array(["a", "b", "a", "c", "b", "a", "c"])  # 3 of a, 2 of b, 2 of c
INFLUENCES = np.random.default_rng(0).normal(size=(5, 7)).round(1)


def share_of_pairs(row, own):
    """Over all pairs of a training sample of the class and another; ties count half."""
    pairs = [(row[i], row[j]) for i in range(len(row)) for j in range(len(row)) if own[i] > own[j]]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def share_of_the_first(row, own):
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    return sum(own[k] for k in order[: sum(own)]) / sum(own)


@pytest.mark.parametrize(
    ("measure", "plain"), [(class_auc, share_of_pairs), (class_recall, share_of_the_first)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_class_measures_of_each_query(measure, plain, dtype):
    influences = INFLUENCES.astype(dtype)
    influences[0, :4] = 0.5  # ties, across classes
    expected = [
        plain(row.tolist(), [c == query for c in TRAINING_CLASSES.tolist()])
        for row, query in zip(influences, QUERY_CLASSES.tolist(), strict=True)
    ]
    assert len(set(expected)) > 1
    found = measure(influences, QUERY_CLASSES, TRAINING_CLASSES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("measure", [class_auc, class_recall])
def test_class_measures_are_one_where_the_own_class_helps_most_and_zero_where_least(measure):
    own = (QUERY_CLASSES[:, None] == TRAINING_CLASSES).astype(float)
    np.testing.assert_array_equal(measure(own, QUERY_CLASSES, TRAINING_CLASSES), np.ones(5))
    np.testing.assert_array_equal(measure(-own, QUERY_CLASSES, TRAINING_CLASSES), np.zeros(5))


@pytest.mark.parametrize("measure", [class_auc, class_recall])
def test_class_measures_take_numbers_as_classes(measure):
    _, numbers = np.unique([*QUERY_CLASSES, *TRAINING_CLASSES], return_inverse=True)
    np.testing.assert_array_equal(
        measure(INFLUENCES, numbers[:5], numbers[5:]),
        measure(INFLUENCES, QUERY_CLASSES, TRAINING_CLASSES),
    )


@pytest.mark.parametrize("measure", [class_auc, class_recall])
@pytest.mark.parametrize(
    ("influences", "queries", "training", "message"),
    [
        (INFLUENCES.T, QUERY_CLASSES, TRAINING_CLASSES, r"shape \(7, 5\)"),
        (INFLUENCES[0], QUERY_CLASSES, TRAINING_CLASSES, r"shape \(7,\)"),
        (INFLUENCES * np.nan, QUERY_CLASSES, TRAINING_CLASSES, "35 influences are not finite"),
        (INFLUENCES[:1], np.array(["d"]), TRAINING_CLASSES, "class d have 0 of 7"),
        (INFLUENCES[:1, :2], np.array(["a"]), np.array(["a", "a"]), "class a have 2 of 2"),
    ],
)
def test_class_measures_refuse_what_has_no_answer(measure, influences, queries, training, message):
    with pytest.raises(ValueError, match=message):
        measure(influences, queries, training)
