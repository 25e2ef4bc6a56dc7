"""Reports in a browser: choosing test samples, tables, and texts that would like to be code."""

import numpy as np
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.report import write_report
from report_in_browser import (
    HOSTILE,
    IDS,
    METADATA,
    NEEDS_BROWSER,
    K,
    M,
    N,
    Watched,
    rows,
    samples,
    search,
    show_all,
    sort,
)

pytestmark = NEEDS_BROWSER


# The browser of test samples


def test_each_test_sample_shows_what_the_run_says(page, run):
    show_all(page, "tests")
    for end in ("helpful", "harmful"):
        show_all(page, end)
    for i, test in enumerate(IDS["test"]):
        page.locator("#tests-table .pick").nth(i).click()
        assert page.locator("#chosen-title").inner_text() == f"Test sample {test}"
        for end in ("helpful", "harmful"):
            ids, influences = run.top(K, test, end)
            shown = rows(page, end)
            assert [row["id"] for row in shown] == ids.tolist()
            assert [row["influence"] for row in shown] == [f"{v:+.2e}" for v in influences]


def test_the_chosen_sample_is_described_and_marked(page):
    page.locator("#tests-table .pick").nth(4).click()
    facts = page.locator("#chosen-facts").inner_text().split("\n")
    assert [line for line in facts if line] == [
        "label",
        "fresh",
        "text",
        "query 4 of many",
        "place",
        "40",
    ]
    marked = page.locator("#tests-table tr.chosen-row")
    assert marked.count() == 1
    assert marked.locator(".pick").get_attribute("aria-pressed") == "true"
    assert "q-4<b>" in marked.inner_text()


def test_previous_and_next_turn_the_list(page):
    assert page.locator("#previous").is_disabled()
    for _ in range(M - 1):
        page.locator("#next").click()
    assert page.locator("#next").is_disabled()
    assert page.locator("#chosen-title").inner_text() == f"Test sample {IDS['test'][-1]}"
    assert [row["id"] for row in rows(page, "tests")] == IDS["test"][10:]
    page.locator("#previous").click()
    page.locator("#previous").click()
    assert [row["id"] for row in rows(page, "tests")] == IDS["test"][:10]


def test_the_keyboard_chooses_a_sample(page):
    page.locator("#tests-table .pick").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator("#chosen-title").inner_text() == "Test sample q-2<b>"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#chosen-title").inner_text() == "Test sample q-3<b>"


def test_the_address_names_the_chosen_sample(page, watched):
    page.locator("#tests-table .pick").nth(7).click()
    address = page.url.partition("#")[2]
    other = watched(hash_=f"#{address}")
    assert other.locator("#chosen-title").inner_text() == "Test sample q-7<b>"
    other.evaluate("location.hash = '#test=q-11%3Cb%3E'")
    other.wait_for_function("document.getElementById('chosen-title').innerText.includes('q-11')")
    other.evaluate("location.hash = '#test=%'")
    other.evaluate("location.hash = '#trust'")
    assert other.locator("#chosen-title").inner_text() == "Test sample q-11<b>"


def test_test_samples_are_searched_in_columns_that_are_not_shown_too(page):
    assert "place" not in rows(page, "tests")[0]
    search(page, "tests", "70")
    assert [row["id"] for row in rows(page, "tests")] == ["q-7<b>"]
    search(page, "tests", "many query 3")
    assert [row["id"] for row in rows(page, "tests")] == ["q-3<b>"]
    search(page, "tests", "nowhere")
    assert "no test samples found" in page.locator("#tests-table tbody").inner_text()


# Tables


def test_tables_are_sorted_by_number_not_by_text(page):
    show_all(page, "suspects")
    losses = dict(zip(IDS["train"], METADATA["train"]["loss"], strict=True))
    sort(page, "suspects", "loss", "ascending")
    shown = [row["id"] for row in rows(page, "suspects")]
    assert np.isnan(losses[shown[0]])
    ascending = [losses[name] for name in shown[1:]]
    assert ascending == sorted(ascending)
    assert len(ascending) == N - 1
    sort(page, "suspects", "loss", "descending")
    shown = [losses[row["id"]] for row in rows(page, "suspects")]
    assert shown[:-1] == sorted(shown[:-1], reverse=True)


def test_suspects_come_with_their_measures(page, run):
    show_all(page, "suspects")
    shown = rows(page, "suspects")
    order = np.argsort(run.mean_influence(), kind="stable")
    assert [row["id"] for row in shown] == run.train_ids[order].tolist()
    for name, values, sign in (
        ("mean influence", run.mean_influence(), "+"),
        ("relative influence", run.relative_influence(), "+"),
        ("self-influence", run.self_influence(), ""),
    ):
        assert [row[name] for row in shown] == [f"{v:{sign}.2e}" for v in values[order]]


def test_tables_have_pages(page):
    ids = [row["id"] for row in rows(page, "suspects")]
    assert len(ids) == 10
    for number in ("2", "3", "4"):
        page.locator("#suspects-table_wrapper .dt-paging-button", has_text=number).click()
        ids += [row["id"] for row in rows(page, "suspects")]
    assert sorted(ids) == sorted(IDS["train"])
    assert page.locator("#blocks-table_wrapper .dt-paging").is_hidden()  # two blocks, one page


def test_tables_are_searched_as_texts(page):
    show_all(page, "suspects")
    search(page, "suspects", "<img src=x")
    hostile = [i for i, text in enumerate(METADATA["train"]["text"]) if "<img src=x" in text]
    assert {row["id"] for row in rows(page, "suspects")} == {IDS["train"][i] for i in hostile}
    search(page, "suspects", "&lt;img")
    assert len(rows(page, "suspects")) == len(hostile)
    search(page, "suspects", '"number 33"')
    assert [row["id"] for row in rows(page, "suspects")] == ["t33"]


def test_blocks_are_listed_with_their_error(page, run):
    error = run.approximation_error
    assert [row["block"] for row in rows(page, "blocks")] == ["0", "2"]
    shown = [float(row["relative error"]) for row in rows(page, "blocks")]
    np.testing.assert_allclose(shown, error.errors, rtol=1e-3)
    shown = [row["damping λ"] for row in rows(page, "blocks")]
    assert shown == [f"{v:.2e}" for v in error.damping]


# Texts are texts


def test_hostile_texts_are_shown_and_never_run(page):
    page.locator("#next").click()
    show_all(page, "suspects")
    shown = [row["text"] for row in rows(page, "suspects")]
    assert HOSTILE in shown
    assert "(empty)" in shown
    assert page.locator("table img, dl img, table script, dl script, table b").count() == 0


def test_long_texts_unfold(page):
    show_all(page, "suspects")
    cell = page.locator("#suspects-table td.kind-text", has_text="w" * 2000).first
    folded = cell.bounding_box()["height"]
    more = cell.locator(".more")
    assert (more.inner_text(), more.get_attribute("aria-expanded")) == ("more", "false")
    more.click()
    assert cell.bounding_box()["height"] > 1.5 * folded
    assert (more.inner_text(), more.get_attribute("aria-expanded")) == ("less", "true")
    more.click()
    assert cell.bounding_box()["height"] == folded


def test_text_from_right_to_left_stays_in_its_cell(page):
    show_all(page, "suspects")
    text = page.locator("#suspects-table .text", has_text="שלום").first
    assert text.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert text.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"


def test_what_is_injected_into_the_page_does_not_run_or_reach_the_network(browser, report):
    watched = Watched(browser, report)
    page = watched.page
    page.evaluate(
        """() => {
            const image = "<img src=data:, onerror='window.hacked=1'>";
            document.body.insertAdjacentHTML("beforeend", image);
            const script = document.createElement("script");
            script.textContent = "window.hacked = 2";
            document.body.append(script);
        }"""
    )
    fetched = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'yes', () => 'no')")
    page.wait_for_timeout(50)
    assert fetched == "no"
    refused = " ".join(watched.wrong)
    for what in ("inline script violates", "inline event handler violates", "Refused to connect"):
        assert what in refused
    watched.wrong.clear()
    watched.close()


def test_images_are_shown(browser, tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 6), (80 * i, 100, 0)).save(tmp_path / f"{i}.png")
    told = {"image": ["0.png", "1.png", "2.png", "gone.png"]}
    run = run_influences(
        DataInfInfluence(nn.Linear(3, 2), F.cross_entropy),
        samples(4, 2),
        samples(4, 1),
        tmp_path / "run.zarr",
        metadata={"train": told, "test": told},
        progress=False,
    )
    watched = Watched(browser, write_report(run, tmp_path / "report.html", images=tmp_path))
    for place in ("#helpful-table, #harmful-table", "#suspects-table", "#tests-table"):
        widths = watched.page.eval_on_selector_all(
            f":is({place}) img", "all => all.map(image => image.naturalWidth)"
        )
        assert widths == [8, 8, 8]
        assert "gone.png" in " ".join(watched.page.locator(place).all_inner_texts())
    assert watched.page.locator("#chosen-facts img").count() == 1
    watched.close()
