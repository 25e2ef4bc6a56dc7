"""Draws the ROC curves of the scores in the result of swapped.py.

python benchmarks/preference/curves.py FOLDER
"""

import json
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np

from pydvl_datainf.plots import roc_curves


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Writes FOLDER/swapped.png from FOLDER/swapped.json."""
    report = json.loads((folder / "swapped.json").read_text())
    suspicions = {name: np.array(each) for name, each in report["suspicions"].items()}
    swapped = np.zeros(len(next(iter(suspicions.values()))), dtype=bool)
    swapped[report["swapped"]] = True
    figure, ax = plt.subplots(figsize=(6.5, 6.5), layout="constrained")
    roc_curves(suspicions, swapped, ax)
    ax.set(xlabel="Share of the clean pairs accused", ylabel="Share of the swapped pairs found")
    figure.savefig(folder / "swapped.png", dpi=100)


if __name__ == "__main__":
    main()
