"""Linear regression that is trained by solving its equations, and its influences in float64."""

import numpy as np

N, M, D, DECAY = 24, 5, 3, 0.1


def data():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=D)
    sides = []
    for size in (N, M):
        x = rng.normal(size=(size, D))
        sides.append((x, x @ weights + rng.normal(size=size)))
    return sides


def solved(x, y):
    return np.linalg.solve(x.T @ x / len(x) + DECAY * np.eye(D), x.T @ y / len(x))


def scores():
    """g_tᵀ (mean x xᵀ + decay)⁻¹ g_k at the solution, (M, N)."""
    (x, y), (x_test, y_test) = data()
    weights = solved(x, y)
    rows = (x @ weights - y)[:, None] * x + DECAY * weights
    queries = (x_test @ weights - y_test)[:, None] * x_test
    return queries @ np.linalg.solve(x.T @ x / N + DECAY * np.eye(D), rows.T)


class Regression:
    """A training with a little noise; counts how often it is called, and stops where told.

    Args:
        stop: the call that is interrupted.
    """

    def __init__(self, stop=None):
        self.calls, self.stop = [], stop

    def __call__(self, indices, seed):
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append((indices.tolist(), seed))
        (x, y), (x_test, y_test) = data()
        weights = solved(x[indices], y[indices])
        noise = np.random.default_rng((seed, *indices)).normal(size=D)
        return 0.5 * (x_test @ (weights + 1e-3 * noise) - y_test) ** 2
