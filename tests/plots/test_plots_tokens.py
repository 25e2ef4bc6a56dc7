import numpy as np
import pytest
from matplotlib.figure import Figure

from pydvl_datainf.plots import token_heatmap

SCORES = np.array([[3.0, -1.0, 0.5, -4.0], [1.0, 0.5, -0.25, 1.0], [1.0, 0.0, 0.0, 0.5]])
TOKENS = [" It", "$x$", ""]


@pytest.mark.parametrize(("k", "rows"), [(2, [0, 3]), (9, [0, 2, 1, 3])])
def test_the_samples_that_matter_most_are_drawn_token_by_token(k, rows):
    ax = token_heatmap(SCORES, TOKENS, ["a", "b", "c", "d"], Figure().subplots(), k=k)
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), SCORES.T[rows])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["abcd"[i] for i in rows]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["It", "$x$", ""]
    low, high = ax.images[0].get_clim()
    assert low == -high < 0
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("tokens", "ids"), [(TOKENS[:2], range(4)), (TOKENS, range(3))])
def test_shapes_that_do_not_fit_are_refused(tokens, ids):
    with pytest.raises(ValueError, match=r"but have shape \(3, 4\)"):
        token_heatmap(SCORES, tokens, ids, Figure().subplots())
