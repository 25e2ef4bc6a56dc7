"""The page of answers by token: its colours are the numbers, and it needs nothing else."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pydvl_datainf.report import Bounds, ReportExistsError, is_report, write_token_page
from pydvl_datainf.report import tokens as tokens_module
from pydvl_datainf.results.by_token import BY_TOKEN, answers_by_token
from report_pages import HOSTILE, METADATA, Page, made

IDS = {"test": ["a.0", "a.1", "a.2", "b.0", "b.1"]}
TEXTS = {
    "prompt": [HOSTILE[0]] * 3 + [HOSTILE[3]] * 2,
    "answer": [HOSTILE[1]] * 3 + [" z\n"] * 2,
    "counted": [HOSTILE[1], " y", HOSTILE[5], " z", "\n"],
}


class TokenPage(Page):
    """A page without data: its tokens, with the shade and the number of each."""

    def __init__(self, path):
        HTMLParser.__init__(self)
        self.elements, self.scripts, self.styles, self.texts, self.tokens = [], [], [], [], []
        self.inside = None
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        (policy,) = (a["content"] for _, a in self.elements if a.get("http-equiv"))
        self.policy = policy

    def handle_data(self, text):
        super().handle_data(text)
        if self.inside is not None:
            self.tokens.append((self.inside["class"], float(self.inside["title"]), text))

    def handle_starttag(self, name, attributes):
        super().handle_starttag(name, attributes)
        told = dict(attributes)
        self.inside = told if "title" in told else None

    def handle_endtag(self, name):
        self.inside = None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = tmp_path_factory.mktemp("by_token") / "run.zarr"
    told = METADATA | {"test": TEXTS, "run": {BY_TOKEN: "sum"}}
    return made(store, ids=IDS, metadata=told)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert write_token_page(run, path, bounds=Bounds(k=4)) == path
    assert is_report(path)
    return TokenPage(path)


def test_colours_are_the_parts_of_influences(run, page):
    answers = list(answers_by_token(run, 4))
    parts = np.concatenate([answer.parts.T.ravel() for answer in answers])
    strongest = np.concatenate([np.full(a.parts.size, np.abs(a.parts).max()) for a in answers])
    numbers = np.array([number for _, number, _ in page.tokens])
    np.testing.assert_allclose(numbers, parts, rtol=6e-3)
    shades = [
        f"{'p' if v > 0 else 'n'}{round(10 * abs(v) / s)}"
        for v, s in zip(parts, strongest, strict=True)
    ]
    assert [shade for shade, _, _ in page.tokens] == shades
    assert {"p10", "n10"} & set(shades)
    styled = {f".{sign}{level} " for sign in "pn" for level in range(1, 11)}
    assert [name for name in styled if name not in page.source] == []
    for influence in answers[0].influences:
        assert f"{influence:+.2e}" in page.text
    assert "The loss of the answer is the sum over its tokens" in page.text


def test_texts_stay_texts(page):
    texts = [text for _, _, text in page.tokens[:3]]
    assert texts == [HOSTILE[1], " y", HOSTILE[5]]
    assert page.tokens[-1][2] == "↵\n"
    assert not [name for name, _ in page.elements if name in ("img", "script")]
    assert page.scripts == []


def test_the_page_fetches_nothing_and_has_no_other_styles(page):
    assert page.policy.startswith("default-src 'none'")
    assert not [a for _, a in page.elements if "style" in a or "src" in a]
    assert [a["href"] for _, a in page.elements if "href" in a] == ["data:,"]


def test_what_is_left_out_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "MOST_CELLS", 30)
    write_token_page(run, tmp_path / "p.html", bounds=replace(Bounds(k=4), characters=0))
    page = TokenPage(tmp_path / "p.html")
    assert len(page.tokens) == 3 * 8
    assert "Left out: 1 further answers" in page.text
    assert "what stands behind character 100 of" in page.text


def test_other_files_stay(run, tmp_path):
    path = tmp_path / "mine.html"
    path.write_text("mine")
    with pytest.raises(ReportExistsError, match="is no report of this package"):
        write_token_page(run, path)
    assert path.read_text() == "mine"
    write_token_page(run, path, overwrite=True)
    assert is_report(path)
