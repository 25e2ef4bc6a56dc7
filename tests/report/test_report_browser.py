"""Reports in a browser: from a file, without a network, with texts that would like to be code."""

import csv
import re
import unicodedata
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.report import Bounds, write_report

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}")

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def run(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return run_influences(
        DataInfInfluence(model, F.cross_entropy),
        samples(M, 2),
        samples(N, 1),
        folder / "run.zarr",
        ids=IDS,
        metadata=METADATA,
        self_influence=True,
        exact_sample=20,
        progress=False,
    )


@pytest.fixture(scope="module")
def report(folder, run):
    return write_report(run, folder / "a report.html", bounds=Bounds(k=K))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


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


@pytest.fixture
def watched(browser, report):
    opened = []

    def open_(**settings):
        opened.append(Watched(browser, report, **settings))
        return opened[-1].page

    yield open_
    for page in opened:
        page.close()


@pytest.fixture
def page(watched):
    return watched(viewport={"width": 1280, "height": 900})


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
    header(page, table, name).click()
    expected = playwright.expect(header(page, table, name))
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
    for place in ("#helpful-table", "#suspects-table", "#tests-table"):
        widths = watched.page.eval_on_selector_all(
            f"{place} img", "all => all.map(image => image.naturalWidth)"
        )
        assert widths == [8, 8, 8]
        assert "gone.png" in watched.page.locator(place).inner_text()
    assert watched.page.locator("#chosen-facts img").count() == 1
    watched.close()


# Downloads


def test_influences_are_saved_with_all_digits(page, run):
    lines = downloaded(page, "influences")
    assert len(lines) == M * 2 * K
    for i, test in enumerate(IDS["test"]):
        for j, end in enumerate(("helpful", "harmful")):
            ids, influences = run.top(K, test, end)
            part = lines[(2 * i + j) * K : (2 * i + j + 1) * K]
            assert [line["test_id"] for line in part] == [test] * K
            assert [line["end"] for line in part] == [end] * K
            assert [line["rank"] for line in part] == [str(r) for r in range(1, K + 1)]
            assert [line["train_id"].removeprefix("'") for line in part] == ids.tolist()
            saved = np.array([line["influence"] for line in part], dtype=np.float32)
            np.testing.assert_array_equal(saved, influences)


def test_one_sample_is_saved_by_itself(page):
    page.locator("#tests-table .pick").nth(3).click()
    lines = downloaded(page, "chosen")
    assert {line["test_id"] for line in lines} == {"q-3<b>"}
    assert len(lines) == 2 * K


def test_texts_are_saved_as_they_are_but_for_formulas(page, run):
    lines = {line["id"].removeprefix("'"): line for line in downloaded(page, "suspects")}
    assert set(lines) == set(IDS["train"])
    formulas = {1, 5, 6, 8, 12, 13, 15, 19, 20, 22, 26, 27, 29, 33, 34, 36}
    for i, name in enumerate(IDS["train"]):
        text, saved = METADATA["train"]["text"][i], lines[name]["text"]
        assert saved == ("'" + text if i in formulas else text)
        assert lines[name]["label"] == METADATA["train"]["label"][i]
        np.testing.assert_equal(float(lines[name]["loss"]), METADATA["train"]["loss"][i])
        np.testing.assert_equal(float(lines[name]["mean influence"]), run.mean_influence()[i])
    assert lines["=1+1"]["id"] == "'=1+1"
    assert {line["loss"][0] for line in lines.values()} >= {"-"}  # numbers are not guarded


def test_texts_hold_no_formula_for_programs_that_end_cells_at_semicolons(page):
    saved = {line["note"] for line in downloaded(page, "suspects")}
    assert saved == set(NOTES.values())
    for text in saved:
        cells = re.split(r"[;\t\r\n]", text)
        assert not [cell for cell in cells if re.match(r'[\s"\u200b]*[=+\-@|]', cell)]


SKIPPED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Cc", "Cf", "Zs")]
SKIPPED += [
    *"\u0301\u034f\u115f\u2028\u2029\u2800\u3164\ufe0f\ufffe\U000e0100",
    "\ufeff \u00ad\x01",
]
SIGNS = "=+-@|＝＋－＠\u2212\ufe62\ufe66"


def test_formulas_are_found_behind_whatever_is_skipped(browser, tmp_path):
    texts = [f"{skipped}=1+1" for skipped in SKIPPED] + [f"\ufe0f{sign}1" for sign in SIGNS]
    notes = [f"a;{text}" for text in texts]
    plain = ["é=1", "(=1+1)", "1 - 2", "\u200bword", "a\u0301-b", "#=1"]
    told = {"text": texts + plain, "note": notes + plain}
    run = run_influences(
        DataInfInfluence(nn.Linear(3, 2), F.cross_entropy),
        samples(1, 2),
        samples(len(told["text"]), 1),
        tmp_path / "run.zarr",
        metadata={"train": told},
        progress=False,
    )
    page = write_report(run, tmp_path / "report.html", bounds=Bounds(suspects=1000))
    watched = Watched(browser, page)
    lines = {int(line["id"]): line for line in downloaded(watched.page, "suspects")}
    watched.close()
    assert len(lines) == len(told["text"])
    for i, text in enumerate(texts):
        saved, note = lines[i]["text"], lines[i]["note"]
        assert saved[0] == "'"
        assert re.search(f"'[{re.escape(SIGNS)}]1", note)
        assert saved.replace("'", "") == text
        assert note.replace("'", "") == f"a;{text}"
    assert [lines[i + len(texts)]["text"] for i in range(len(plain))] == plain


def test_texts_are_saved_in_quotes_and_numbers_without(page):
    lines = saved_text(page, "tests").split("\r\n")
    assert lines[0] == '"id","label","text","place"'
    assert lines[1] == '"q-0<b>","fresh","query 0 of many",0'


def test_the_other_tables_are_saved_too(page, run):
    assert [line["id"] for line in downloaded(page, "tests")] == IDS["test"]
    labels = {line["label"]: line for line in downloaded(page, "labels")}
    mean, given = run.mean_influence(), np.array(METADATA["train"]["label"])
    for label in ("fresh", "rotten"):
        assert int(labels[label]["samples"]) == (given == label).sum()
        average = float(labels[label]["mean_influence"])
        assert average == pytest.approx(mean[given == label].mean(), rel=1e-12)
    blocks = downloaded(page, "blocks")
    assert [line["path"] for line in blocks] == ["0", "2"]
    assert [float(line["damping λ"]) for line in blocks] == list(run.damping.values())


# Looks


def luminance(colour):
    channels = np.array([int(c) for c in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


COLOURS = """node => {
    let back = node, colour;
    do { colour = getComputedStyle(back).backgroundColor; back = back.parentElement; }
    while (back && colour === "rgba(0, 0, 0, 0)");
    return [getComputedStyle(node).color, colour];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_background(watched, scheme):
    page = watched(color_scheme=scheme)
    page_colour = page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
    assert (luminance(page_colour) > 0.5) == (scheme == "light")
    for selector in (
        "h1",
        "nav a",
        ".tiles span",
        "#chosen-facts dt",
        ".chosen-row td",
        ".chosen-row .pick",
        ".dt-info",
        ".dt-column-order",
        "footer p",
        "#next",
    ):
        ink, paper = page.locator(selector).first.evaluate(COLOURS)
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    assert page.locator("img.light").first.is_visible() == (scheme == "light")
    assert page.locator("img.dark").first.is_visible() == (scheme == "dark")


def test_pictures_are_drawn(page):
    sizes = page.eval_on_selector_all(
        "figure img", "all => all.map(i => i.complete && i.naturalWidth)"
    )
    assert len(sizes) == 4
    assert min(sizes) > 100


def test_prints_are_light_and_without_controls(watched):
    page = watched(color_scheme="dark")
    page.emulate_media(media="print")
    colour = page.locator("section").first.evaluate(COLOURS)[1]
    assert luminance(colour) > 0.9
    assert page.locator("img.light").first.is_visible()
    assert not page.locator("img.dark").first.is_visible()
    wrapper = "#suspects-table_wrapper "
    hidden = ("search", "length", "paging")
    for selector in ("body > nav", ".list", "#downloads", ".more", *(f".dt-{h}" for h in hidden)):
        assert not page.locator(selector).first.is_visible()
    for control in hidden:
        assert page.locator(f"{wrapper}.dt-{control}").count() == 1
        assert not page.locator(f"{wrapper}.dt-{control}").is_visible()
    extent = page.locator(f"{wrapper}.dt-info")
    assert extent.is_visible()  # a print has no other pages
    assert extent.inner_text() == f"1 to 10 of {N} training samples"
    assert page.locator("#helpful-table").is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_is_no_wider_than_the_window(watched, width):
    page = watched(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_controls_have_names(page):
    names = page.eval_on_selector_all(
        "input, select, button",
        """all => all.map(c => c.ariaLabel || c.labels?.[0]?.innerText || c.innerText)""",
    )
    assert len(names) > 20
    assert all(name.strip() for name in names)


def test_without_scripts_the_page_says_that_it_needs_them(browser, report):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    assert "need JavaScript" in page.locator(".warning").inner_text()
    context.close()
