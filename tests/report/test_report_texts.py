"""Reports: texts of the data are texts, never markup or code, and nothing is fetched."""

import re
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise

from pydvl_datainf.report import write_report
from report_pages import HOSTILE, N, all_texts


def test_texts_come_back_whole(plain_page):
    shown = all_texts(plain_page, "train", "text")
    assert [shown[i] for i in range(len(HOSTILE))] == HOSTILE


def test_nothing_of_the_data_is_markup(plain_page):
    assert [name for name, _ in plain_page.elements].count("script") == 2
    assert [
        attributes.get("type") for name, attributes in plain_page.elements if name == "script"
    ] == [
        "application/json",
        "module",
    ]
    images = [attributes for name, attributes in plain_page.elements if name == "img"]
    assert all(a["src"].startswith("data:image/svg+xml;base64,") for a in images)
    assert not [n for n, a in plain_page.elements for key in a if key.startswith("on")]
    for name in ("b", "--"):
        assert name not in [element for element, _ in plain_page.elements]
    assert "<b>odd</b>" in plain_page.texts  # in the table of labels
    assert HOSTILE[1] in plain_page.text.replace('\\"', '"')  # told of the run, as JSON


def test_no_character_of_the_data_ends_the_script(plain_page):
    for character in "<>&\u2028\u2029":
        assert character not in plain_page.scripts[0]


def test_the_policy_allows_this_script_and_this_style_alone(plain_page):
    def allowed(text):
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    policy = dict(part.split(" ", 1) for part in plain_page.policy.split("; "))
    (style,) = plain_page.styles
    assert policy == {
        "default-src": "'none'",
        "script-src": allowed(plain_page.scripts[1]),
        "style-src": allowed(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert allowed(plain_page.scripts[1] + " ") != policy["script-src"]


def test_nothing_is_fetched(plain_page):
    sources = [
        (name, value)
        for name, attributes in plain_page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data")
    ]
    assert len(sources) > 10
    assert [s for s in sources if not s[1].startswith(("data:", "#"))] == []


def test_the_page_says_in_which_language_it_is_and_its_headings_are_in_order(plain_page):
    assert ("html", {"lang": "en"}) in plain_page.elements
    levels = [int(name[1]) for name, _ in plain_page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert max(b - a for a, b in pairwise(levels)) == 1
    assert levels.count(1) == 1


def test_numbers_that_json_lacks_are_told_as_texts(plain_page):
    loss = all_texts(plain_page, "train", "loss")
    assert [loss[i] for i in range(N - 4, N)] == ["NaN", "Infinity", "-Infinity", 0]
    assert loss[3] == 0.375
    assert str(loss[N - 1]) == "0.0"  # not -0.0
    assert all_texts(plain_page, "train", "number")[3] == str(2**60 + 3)


def test_the_same_run_gives_the_same_bytes(folder, plain_page, plain, tmp_path):
    write_report(plain, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (folder / "plain.html").read_bytes()
