"""Reports in a browser: tables that are saved as CSV, without formulas."""

import re
import unicodedata

import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.report import Bounds, write_report
from report_in_browser import (
    IDS,
    METADATA,
    NEEDS_BROWSER,
    NOTES,
    K,
    M,
    Watched,
    downloaded,
    samples,
    saved_text,
)

pytestmark = NEEDS_BROWSER


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
