"""Finished runs to be damaged, and all that is told of one."""

import json

from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import sealed_attributes
from stopped_run import M, N

KINDS = {
    "zarr": {
        "rows": "zarr",
        "self_influence": True,
        "exact_sample": 4,
        "ids": {"train": [f"t{i}" for i in range(N)]},
        "metadata": {
            "train": {"label": ["a", "b", "c"] * 7 + ["d"] * (N - 21), "loss": [0.5] * N},
            "test": {"flag": [i % 2 == 0 for i in range(M)]},
            "run": {"purpose": "test"},
        },
    },
    "top": {"top_k": 3, "query_groups": ["x", "y", "z"] * 3 + ["x", "y"]},
}


def values(store):
    """All that a run tells, as text: equal texts are equal bits."""
    found = InfluenceRun(store)
    found.check()
    error = found.approximation_error
    told = [
        found.damping,
        found.test_ids.tolist(),
        {
            side: {k: v.tolist() for k, v in found.metadata(side).items()}
            for side in ("test", "train")
        },
        found.metadata("run"),
        [part.tolist() for end in ("helpful", "harmful") for part in found.top(3, most=end)],
        found.mean_influence().tolist(),
        error and [error.errors.tolist(), error.cosines.tolist(), error.n, error.m],
        error and [error.score_error, error.rank_correlation, error.blocks, error.widths.tolist()],
        found.has_self_influence and found.self_influence().tolist(),
    ]
    return repr(told)


def outcome(function, *arguments):
    """What comes back, or what is raised, whatever it is."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def put(file, content):
    file.unlink()
    for some in [content] if content is not None else []:
        file.write_bytes(some)


def rewritten(store, changes, without=()):
    """Changes attributes as somebody would who knows the format, checksum included."""
    content = json.loads((store / "zarr.json").read_text())
    attributes = content["attributes"]
    for path, value in changes.items():
        *parents, name = path.split(".", 1)
        place = attributes[parents[0]] if parents else attributes
        place[name] = value
    attributes["checksum"] = changes.get("checksum", sealed_attributes(attributes)["checksum"])
    for name in without:
        del attributes[name]
    (store / "zarr.json").write_text(json.dumps(content))
    return attributes
