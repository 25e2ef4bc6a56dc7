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
SELVES = {"self_influence": True}
CASES = {
    "top": (
        "linear",
        600,
        512,
        {"memory": 12 * MIB, "rows": "zarr", "top_k": 200, "tile": [None, 64]},
    ),
    "selves": ("linear", 8, 1000, {"memory": 8 * MIB, "rows": "zarr", **SELVES}),
    "selves kept": ("linear", 8, 1000, {"memory": 16 * MIB, "rows": "memory", **SELVES}),
    "selves recomputed": ("linear", 8, 500, {"memory": 5 * MIB, "rows": "recompute", **SELVES}),
    "scores": ("linear", 600, 256, {"memory": 12 * MIB, "rows": "zarr"}),
    "scores by block": ("linear", 300, 512, {"memory": 10 * MIB, "rows": "zarr", "by_block": True}),
    "many training samples": (
        "linear",
        512,
        2560,
        {"memory": 80 * MIB, "rows": "zarr", "tile": [512, 256]},
    ),
    "pieces": ("deep", 300, 512, {"memory": 8 * MIB, "rows": "zarr"}),
    "pieces for few": ("deep", 8, 1000, {"memory": 24 * MIB, "rows": "zarr", **SELVES}),
    "pieces, some streamed": ("deep", 8, 2000, {"memory": 14 * MIB, "rows": "zarr", **SELVES}),
    "pieces by block": ("deep", 300, 512, {"memory": 10 * MIB, "rows": "zarr", "by_block": True}),
    "exact": ("exact", 100, 512, {"memory": 48 * MIB, "rows": "zarr", **SELVES}),
    "behind sides": (
        "exact",
        8,
        256,
        {"memory": 12 * MIB, "rows": "compressed", "rank": 32, "sides": 0.5},
    ),
    "exact kept": ("exact", 100, 256, {"memory": 40 * MIB, "rows": "memory", **SELVES}),
}
"""Model, queries, training samples and settings."""


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
    assert MIB < peaks[case][0] <= CASES[case][3]["memory"] + NO_ARRAYS


def test_the_best_of_all_queries_are_found_tile_by_tile(peaks):
    """All scores of a tile of queries take 5 MiB, a chunk of them 0.5 MiB."""
    assert peaks["many training samples"][1] <= 3 * MIB


@pytest.mark.parametrize("case", ["top", "scores", "scores by block", "pieces", "pieces by block"])
def test_premise_the_vectors_of_all_queries_do_not_fit(peaks, case):
    assert peaks[case][2] > 1


@pytest.mark.parametrize(
    ("case", "held"),
    [
        ("selves", [False]),
        ("pieces", [True] * 3),
        ("pieces for few", [True] * 4),
        ("pieces, some streamed", [False] * 3 + [True]),
        ("exact", [True] * 4),
    ],
)
def test_premise_the_rows_of_these_pieces_are_held(peaks, case, held):
    assert peaks[case][3] == held
