"""What a page calls helpful helps; cards name their texts, and no word of them is broken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.report import write_report
from report_in_browser import NEEDS_BROWSER, Watched, rows

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]
LABELS = ["contradiction", "entailment", "internationalization", "no"]


@pytest.fixture(scope="module")
def opposed(tmp_path_factory):
    """Eight samples of one label at one place, and tests there of the other label, and of it."""
    folder = tmp_path_factory.mktemp("ends")
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    run = run_influences(
        DataInfInfluence(model, F.cross_entropy),
        (torch.ones(2, 3, dtype=torch.float64), torch.tensor([1, 0])),
        (torch.ones(8, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.long)),
        folder / "run.zarr",
        metadata={
            "train": {
                "prompt": [f"What is {i}?" for i in range(8)],
                "answer": [f"It is {i}." for i in range(8)],
                "label": LABELS * 2,
            }
        },
        self_influence=True,
        progress=False,
    )
    return run, write_report(run, folder / "page.html")


def test_nothing_is_called_what_it_is_not(browser, opposed):
    run, path = opposed
    assert (run.scores[0] < 0).all()
    assert (run.scores[1] > 0).all()
    watched = Watched(browser, path)
    page, losses = watched.page, [f"{v:.4g}" for v in run.training_loss()]
    helped, harmed = page.locator("#helpful-table"), page.locator("#harmful-table")
    assert "Nothing helped: no training sample has a positive influence." in helped.inner_text()
    assert [row["influence"][0] for row in rows(page, "harmful")] == ["-"] * 8
    assert [row["training loss"] for row in rows(page, "harmful")] == losses
    assert [float(row["suspicion"]) for row in rows(page, "harmful")] == run.suspicion().tolist()
    page.locator("#next").click()
    assert "Nothing harmed: no training sample has a negative influence." in harmed.inner_text()
    assert [row["influence"][0] for row in rows(page, "helpful")] == ["+"] * 8
    watched.close()


HEIGHT = """cell => { const range = document.createRange(); range.selectNodeContents(cell);
    return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size; }"""


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_no_word_is_broken_and_cards_name_their_texts(browser, opposed, width):
    watched = Watched(browser, opposed[1], viewport={"width": width, "height": 900})
    page = watched.page
    places = {"#harmful-table td[data-name=label] .text": 8, "#labels-table th[scope=row] bdi": 4}
    for place, count in places.items():
        lines = [cell.evaluate(HEIGHT) for cell in page.locator(place).all()]
        assert lines == [1] * count
    names = [
        page.locator(f"#harmful-table td[data-name={name}]").first.evaluate(
            "cell => getComputedStyle(cell, '::before').content"
        )
        for name in ("prompt", "answer")
    ]
    named = {390: ['"prompt "', '"answer "']}
    assert names == named.get(width, ["none", "none"])
    watched.close()
