"""A report in a browser: from a file, without a network, and watched."""

import csv
import re
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences

CHROMIUM = Path("/usr/bin/chromium")
NEEDS_BROWSER = pytest.mark.skipif(
    not CHROMIUM.exists() or find_spec("playwright") is None,
    reason=f"needs {CHROMIUM} and playwright",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
N, M, K = 40, 12, 15
HOSTILE = (
    "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    "&lt;img src=x onerror=alert(1)&gt;"
)
FORMULA = '=HYPERLINK("http://example.invalid","a"),\r\n\'b\''
TEXTS = [
    HOSTILE,
    FORMULA,
    "",
    "שלום, \u202eright to left",
    "w" * 2000,
    " -2+3 is text too",
    "\u200b@mention",
]
NOTES = {  # and how they are saved
    "a;=1+1": "a;'=1+1",
    'a; "=1+1"': 'a; "\'=1+1"',
    ";;\u200b+1": ";;\u200b'+1",
    "a\n- b\r\n\t@c\r=d": "a\n'- b\r\n\t'@c\r'=d",
    "=1;=2": "'=1;'=2",
    'a, -2; 3 - 4 "-5"\nb = c;': 'a, -2; 3 - 4 "-5"\nb = c;',
    "plain": "plain",
}
IDS = {"train": [f"t{i}" for i in range(N)], "test": [f"q-{i}<b>" for i in range(M)]}
IDS["train"][3] = "=1+1"
METADATA = {
    "train": {
        "text": [f"{TEXTS[i % 7]}" + (f" number {i}" if i >= 7 else "") for i in range(N)],
        "label": ["rotten" if i % 3 else "fresh" for i in range(N)],
        "note": [[*NOTES][i % len(NOTES)] for i in range(N)],
        "loss": [(7 * i % N) - 5.25 for i in range(N - 1)] + [np.nan],
    },
    "test": {
        "text": [f"query {i} of many" for i in range(M - 1)] + [HOSTILE],
        "label": ["fresh"] * M,
        "place": [i * 10 for i in range(M)],
    },
}


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator)
    return x, torch.randint(0, 2, (length,), generator=generator)


def made(store):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return run_influences(
        DataInfInfluence(model, F.cross_entropy),
        samples(M, 2),
        samples(N, 1),
        store,
        ids=IDS,
        metadata=METADATA,
        self_influence=True,
        exact_sample=20,
        progress=False,
    )


class Watched:
    """A page that has loaded, and what it did that a report must not do."""

    def __init__(self, browser, path, hash_="", **settings):
        self.context = browser.new_context(offline=True, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.wrong, self.requests = [], []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri() + hash_)
        self.page.wait_for_selector("#helpful-table tbody tr")

    def close(self):
        hacked = self.page.evaluate("typeof window.hacked")
        self.context.close()
        assert self.wrong == []
        assert hacked == "undefined"
        fetched = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        assert len(fetched) == 1
        assert fetched[0].startswith("file:")


def rows(page, table):
    """Texts of the cells that a table shows, by the name of their column."""
    return page.eval_on_selector_all(
        f"#{table}-table tbody tr",
        """rows => rows.map(row => Object.fromEntries(
            [...row.cells].map(cell => [cell.dataset.name, cell.innerText.trim()])))""",
    )


def header(page, table, name):
    return page.locator(f"#{table}-table thead th", has_text=re.compile(rf"^\s*{name}")).first


def sort(page, table, name, direction):
    from playwright.sync_api import expect

    header(page, table, name).click()
    expected = expect(header(page, table, name))
    expected.to_have_attribute("aria-sort", direction)  # DataTables sorts a moment later


def search(page, table, text):
    page.locator(f"#{table}-table_wrapper .dt-search input").fill(text)


def show_all(page, table):
    page.locator(f"#{table}-table_wrapper .dt-length select").select_option("-1")


def saved_text(page, name):
    with page.expect_download() as waiting:
        page.locator(f"#downloads [data-csv={name}], .chosen [data-csv={name}]").click()
    assert waiting.value.suggested_filename == f"{name}.csv"
    content = Path(waiting.value.path()).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    return content.decode("utf-8-sig")


def downloaded(page, name):
    return list(csv.DictReader(StringIO(saved_text(page, name), newline="")))
