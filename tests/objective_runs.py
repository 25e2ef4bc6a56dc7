"""Scores of runs of any objective, against those of the formula."""

import tiny
from pydvl_datainf import run_influences

ROWS = [("memory", 1e-9), ("recompute", 1e-9), ("zarr", 1e-3)]
"""Where rows are kept, and the bound on errors of scores, of their root mean square."""


def assert_run_agrees(task, store, rows, bound, **settings):
    """`task` is an influence model, test and training batches, and the scores by the oracle."""
    *given, exact = task
    done = run_influences(*given, store, rows=rows, progress=False, **settings)
    assert done.plan.rows == rows
    tiny.assert_scores_close(done.scores[...], exact, bound)
