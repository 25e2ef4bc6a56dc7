"""Checks the package on one card in less than eight minutes, and prints one table.

python benchmarks/gpu/check.py [--device cuda] [--out gpu-check] [--only SECTION ...]

A section that fails or takes too long leaves a line in the table, and the next one begins. With
--device cpu --tiny the script itself is tried, without what needs CUDA.
"""

import argparse
import gc
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from card_models import Setting
    from card_sections import (
        Row,
        SkippedError,
        about,
        attention,
        cholesky,
        out_of_memory,
        precision,
        rate,
        recurrence,
        twice,
        workers,
    )

Section = Callable[[Setting], Iterator[Row]]

SECTIONS: dict[str, tuple[Section, int]] = {
    "about": (about, 15),
    "precision": (precision, 60),
    "attention": (attention, 50),
    "recurrence": (recurrence, 20),
    "memory": (out_of_memory, 30),
    "twice": (twice, 30),
    "1B": (rate("1B"), 60),
    "7B": (rate("7B"), 90),
    "cholesky": (cholesky, 40),
    "workers": (workers, 90),
}
"""What is checked, and the seconds that each may take."""

TOGETHER = 450
"""Seconds of all."""


def results_of(section: Section, setting: Setting, limit: float) -> list[Row]:
    """The rows of a section, up to where it fails or its time is up."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"took longer than {limit:.0f} s")

    rows: list[Row] = []
    start, before = time.perf_counter(), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
    try:
        rows.extend(section(setting))
    except SkippedError as why:
        rows.append(("skipped", str(why), None))
    except Exception as error:  # whatever happens on a card that nobody has tried
        last = traceback.format_exception_only(error)[0].strip().splitlines()
        rows.append(("failed", " ".join(last), False))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    rows.append(("seconds", f"{time.perf_counter() - start:.1f}", None))
    return rows


def written(found: dict[str, list[Row]], folder: Path) -> str:
    """The table, which is also kept in a folder, and the same as JSON."""
    marks = {True: "yes", False: "**NO**", None: ""}
    lines = ["| section | what | value | as it should be |", "|---|---|---|---|"]
    for name, rows in found.items():
        for what, value, is_right in rows:
            cells = (name, what, value.replace("|", "\\|"), marks[is_right])
            lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.md").write_text(f"{table}\n")
    keys = ("what", "value", "as it should be")
    every = {
        name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in found.items()
    }
    (folder / "check.json").write_text(json.dumps(every, indent=1))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Sizes that only try the script.")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="Folder of the table.")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    setting = Setting(torch.device(options.device), options.tiny)
    end, found = time.perf_counter() + TOGETHER, {}
    for name in options.only:
        section, limit = SECTIONS[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = results_of(section, setting, min(limit, end - time.perf_counter()))
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        table = written(found, options.out)  # what there is by now, if something ends this process
    print(table)
    return int(any(row[2] is False for rows in found.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
