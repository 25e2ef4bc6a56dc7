"""Reports that hold every kind of text and number, and what a parser finds on their pages."""

import json
from html.parser import HTMLParser

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences

N, M = 24, 5
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 2'>",
    "<!-- <script>",
    "a\u2028b\u2029c & \"d\" 'e' \\u003c \x00 \x1b[31m",
    "",
    "\u202eright to left\u202c, שלום, 漢字, 🙂",
    "w" * 3000,
    "{{ 7 * 7 }} {% raw %}",
]
LABELS = ["rotten", "fresh", "<b>odd</b>"]
METADATA = {
    "train": {
        "text": [f"{HOSTILE[i % len(HOSTILE)]}" for i in range(N)],
        "label": [LABELS[i % 3] for i in range(N)],
        "flipped": [i % 5 == 3 for i in range(N)],
        "loss": [0.125 * i for i in range(N - 4)] + [np.nan, np.inf, -np.inf, -0.0],
        "number": [2**60 + i for i in range(N)],
    },
    "test": {"text": HOSTILE[:M], "label": [1, 0, 1, 0, 1]},
    "run": {"purpose": HOSTILE[1]},
}


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (length,), generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def made(store, influence=None, n=N, m=M, **wishes):
    usual = {"tile": (2, 7), "metadata": METADATA, "progress": False}
    influence = influence or DataInfInfluence(network(), F.cross_entropy, batch_size=8)
    return run_influences(influence, samples(m, 2), samples(n, 1), store, **usual | wishes)


class Page(HTMLParser):
    """A page as a browser's parser splits it: elements with their attributes, texts, scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self.styles, self.texts = [], [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        (policy,) = (a for n, a in self.elements if a.get("http-equiv"))
        self.policy = policy["content"]
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, text):
        kinds = {"script": self.scripts, "style": self.styles}
        last = self.elements[-1][0] if self.elements else ""
        kinds.get(last if self.cdata_elem else "", self.texts).append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def ids_shown(page, side):
    return page.data[side]["ids"]["values"]


def column(page, side, name):
    (found,) = (c for c in page.data[side]["columns"] if c["name"] == name)
    return found["values"]


def all_texts(page, side, name):
    """Values of a column by id."""
    return dict(zip(ids_shown(page, side), column(page, side, name), strict=True))
