import numpy as np
import pytest

from pydvl_datainf.evaluation import largest, mislabel_auc, relative_influence

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


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (3, [1, 3, 0]), (9, [1, 3, 0, 2])])
def test_largest_come_first_and_ties_in_order(k, expected):
    np.testing.assert_array_equal(largest(np.array([0.5, 2.0, -1.0, 2.0]), k), expected)
