"""What runs take in memory, measured in a process of their own, against what they were given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MIB = 2**20
NO_ARRAYS = MIB // 2  # what the interpreter, Zarr and threads take from time to time
CASES = {
    "top": (600, 512, {"memory": 12 * MIB, "rows": "zarr", "top_k": 200, "tile": [None, 64]}),
    "selves": (8, 1000, {"memory": 10 * MIB, "rows": "zarr", "self_influence": True}),
    "selves kept": (8, 1000, {"memory": 16 * MIB, "rows": "memory", "self_influence": True}),
    "selves recomputed": (8, 500, {"memory": 5 * MIB, "rows": "recompute", "self_influence": True}),
    "scores": (600, 256, {"memory": 12 * MIB, "rows": "zarr"}),
    "scores by block": (300, 512, {"memory": 10 * MIB, "rows": "zarr", "by_block": True}),
    "many training samples": (512, 2560, {"memory": 64 * MIB, "rows": "zarr", "tile": [512, 256]}),
}
"""Queries, training samples and settings, so that the vectors of all do not fit."""


@pytest.fixture(scope="module")
def peaks():
    script = Path(__file__).parents[1] / "peak_of_run.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(CASES)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_run_takes_no_more_than_it_was_given(peaks, case):
    assert MIB < peaks[case][0] <= CASES[case][2]["memory"] + NO_ARRAYS


def test_the_best_of_all_queries_are_found_tile_by_tile(peaks):
    """All scores of a tile of queries take 5 MiB, a chunk of them 0.5 MiB."""
    assert peaks["many training samples"][1] <= 3 * MIB
