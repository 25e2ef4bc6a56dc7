"""Reports in a browser: contrast, prints, narrow windows, names of controls, no scripts."""

import re

import numpy as np
import pytest

from report_in_browser import NEEDS_BROWSER, N

pytestmark = NEEDS_BROWSER


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
