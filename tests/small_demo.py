"""The demo with a small model in place of the tuned transformer."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence
from pydvl_datainf.demo import output, run
from pydvl_datainf.demo.preparation import Prepared
from pydvl_datainf.demo.reviews import Reviews
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.report import file
from pydvl_datainf.results.reader import InfluenceRun


def reviews(labels, flipped):
    texts = [f"[review] {i}" for i in range(len(labels))]
    return Reviews(np.array(texts, dtype=object), np.array(labels), np.array(flipped))


SETTINGS = DemoSettings(train=9, test=4, flip=0.4)
LABELS = [0, 1, 1, 0, 0, 1, 0, 1, 1]
OTHER = replace(SETTINGS, seed=1)


def loader(labels, seed):
    x = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x.double(), torch.from_numpy(labels)), batch_size=4)


def losses(model, batches):
    return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches])


def losses_of_test(model):
    with torch.no_grad():
        return losses(model, loader(np.array([1, 0, 0, 1]), 2)).numpy()


def retrained(indices, seed):
    """Test losses of another model after a step of gradient descent on some reviews."""
    torch.manual_seed(1 + seed)
    model = nn.Linear(3, 2).double()
    losses(model, loader(np.array(LABELS), 1))[indices].mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    return losses_of_test(model)


def prepared(settings, stages, weight_seed=None):
    with stages.stage("Tuning"):
        torch.manual_seed(settings.seed if weight_seed is None else weight_seed)
        model = nn.Linear(3, 2).double()
    train = reviews(LABELS, [True, False, True] * 3)
    test = reviews([1, 0, 0, 1], [False] * 4)
    scores = {
        "hessian_free": np.linspace(-1, 1, 9) ** 3,
        "scaled_hessian_free": np.linspace(-2, 1, 9) ** 3,
    }
    return Prepared(
        influence=DataInfInfluence(model, F.cross_entropy),
        train=loader(train.labels, 1),
        test=loader(test.labels, 2),
        columns={
            "train": train.to_columns() | scores,
            "test": test.to_columns() | {"loss": losses_of_test(model)},
        },
        told={**output.origin(settings), "accuracy": 0.75},
    )


def mark(store, path):
    """Stands for a report, which takes longer."""
    InfluenceRun(store).check()
    path.write_text(file.MARK)


def mark_plots(folder, result):
    """Stands for the plots likewise."""
    for name in output.PLOTS:
        (folder / name).write_bytes(b"\x89PNG")


class Demo:
    """Runs the demo into one folder; keeps what it announced, and how often it tuned."""

    def __init__(self, out, monkeypatch, write_report=mark, write_plots=mark_plots):
        self.out = out
        self.store = out / output.SCORES
        self.lines = []
        self.tuned = 0
        self.weight_seed = None
        monkeypatch.setattr(run, "prepare", self.prepare)
        monkeypatch.setattr(run, "write_report", write_report)
        monkeypatch.setattr(run, "write_plots", write_plots)

    def prepare(self, settings, stages, progress):
        self.tuned += 1
        return prepared(settings, stages, self.weight_seed)

    def __call__(self, settings=SETTINGS, **wishes):
        self.lines.clear()
        return run.run_demo(settings, self.out, announce=self.lines.append, **wishes)

    def content(self):
        paths = [p for p in self.out.rglob("*") if p.is_file()]
        return {path.relative_to(self.out): path.read_bytes() for path in paths}
