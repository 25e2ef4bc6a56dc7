"""Runs, their reports, and a browser that shows them."""

import pytest

import report_in_browser
import report_pages
from pydvl_datainf.report import Bounds, pictures, write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing takes most of the time of a small report."""
    empty = pictures.Picture("data:,", "data:,", "not drawn")
    monkeypatch.setattr(pictures, "drawn", lambda *arguments: empty)


@pytest.fixture(scope="session")
def plain(folder):
    store, exact_sample = folder / "plain.zarr", report_pages.N
    return report_pages.made(store, self_influence=True, exact_sample=exact_sample)


@pytest.fixture(scope="session")
def plain_page(folder, plain):
    return report_pages.Page(write_report(plain, folder / "plain.html"))


# In a browser


@pytest.fixture(scope="session")
def run(folder):
    return report_in_browser.made(folder / "run.zarr")


@pytest.fixture(scope="session")
def report(folder, run):
    return write_report(run, folder / "a report.html", bounds=Bounds(k=report_in_browser.K))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path, arguments = str(report_in_browser.CHROMIUM), report_in_browser.ARGUMENTS
        chromium = started.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def watched(browser, report):
    opened = []

    def open_(**settings):
        opened.append(report_in_browser.Watched(browser, report, **settings))
        return opened[-1].page

    yield open_
    for page in opened:
        page.close()


@pytest.fixture
def page(watched):
    return watched(viewport={"width": 1280, "height": 900})
