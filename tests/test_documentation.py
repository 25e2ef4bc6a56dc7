"""README and docs: code runs, jobs and commands are valid, links lead somewhere."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import pydvl_datainf
from pydvl_datainf.cli import main
from pydvl_datainf.errors import JobError
from pydvl_datainf.jobfile.reading import read_job

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
TEXTS = dict(zip(NAMES, (path.read_text(encoding="utf-8") for path in PAGES), strict=True))

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s#]*)(#[^)\s]*)?\)|<img[^>]* src=\"([^\"]*)\"")
COMMAND = re.compile(r"^(?:\S*/)?pydvl-datainf (.*?)(?: {2,}#.*)?$", re.MULTILINE)
TESTED = {"python", "yaml", "bash", ""}


def fences(text, *languages):
    """What stands in fences, at the line where it stands in the page, for tracebacks."""
    found = (match for match in FENCE.finditer(text) if match[2] in languages)
    return ["\n" * text.count("\n", 0, match.start(3)) + match[3] for match in found]


def commands(text):
    """Lines that call the command, with lines that go on joined, and without comments."""
    shown = "\n".join(fences(text, "bash", "")).replace("\\\n", " ")
    return COMMAND.findall(shown)


def mentions(text):
    """The same in the midst of a sentence, where arguments may be left out."""
    return re.findall(r"`pydvl-datainf (\w[^`]*)`", FENCE.sub("", text))


def resolved(line):
    context = click.Context(main)
    return context, *main.resolve_command(context, shlex.split(line))


def check_command(line):
    """Raises if there is no such command, or it has no such option, or too few arguments."""
    context, name, command, rest = resolved(line)
    command.make_context(name, rest, parent=context).close()


def anchors(text):
    """Those of the headings, as mkdocs and GitHub make them of plain words."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {f"#{title.replace(' ', '-')}" for title in plain}


def without_code(text):
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


JOBS = [(name, i) for name in NAMES for i in range(len(fences(TEXTS[name], "yaml")))]
COMMANDS = [(name, line) for name in NAMES for line in commands(TEXTS[name])]
MENTIONS = [(name, line) for name in NAMES for line in mentions(TEXTS[name])]
WITH_CODE = [name for name in NAMES if fences(TEXTS[name], "python")]


@pytest.mark.slow  # together
@pytest.mark.filterwarnings("ignore")  # other packages, and those of ours that a page asks for
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    """From top to bottom, in an empty folder; what a block claims it asserts itself."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": name}
    for code in fences(TEXTS[name], "python"):
        exec(compile(code, name, "exec"), names)


@pytest.mark.parametrize(("name", "i"), JOBS)
def test_a_job_is_valid(name, i, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(fences(TEXTS[name], "yaml")[i], encoding="utf-8")
    read_job(path, {})


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_a_command_exists(name, line):
    check_command(line)


@pytest.mark.parametrize(("name", "line"), MENTIONS)
def test_a_command_in_a_sentence_exists(name, line):
    _, _, command, rest = resolved(line)
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= options


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    found = LINK.findall(without_code(TEXTS[name]))
    relative = [(target or src, anchor) for target, anchor, src in found if ":" not in target + src]
    places = [(ROOT / name).parent / target if target else ROOT / name for target, _ in relative]
    assert [place for place in places if not place.exists()] == []
    anchored = [(p, anchor) for p, (_, anchor) in zip(places, relative, strict=True) if anchor]
    assert [(p, a) for p, a in anchored if a not in anchors(p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", NAMES)
def test_code_is_in_a_language_that_is_tested(name):
    assert {language for _, language, _ in FENCE.findall(TEXTS[name])} <= TESTED | {"mermaid"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    pages = {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}
    brought = [name for name in listed if name not in pages]
    assert pages <= set(listed)
    assert [name for name in brought if not (ROOT / name).is_file()] == []


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as by hand; a warning is an error."""
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    made = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder


def fetched(html):
    """What a browser gets by itself when it shows a page."""
    tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", html)
    return re.findall(r"""(?:src|href)=["']?(https?://[^"' >]+)""", " ".join(tags))


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere_and_shows_what_is_public(site):
    """One test, so that the site is built in one process only."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > len(NAMES)  # benchmarks and the changelog too
    assert [url for page in pages.values() for url in fetched(page)] == []
    shown = "".join(page for path, page in pages.items() if path.parent == site / "api")
    ids = set(re.findall(r'id="(?:pydvl_datainf\.)(?:\w+\.)*(\w+)"', shown))
    assert set(pydvl_datainf.__all__) - {"__version__"} <= ids


def test_a_notebook_becomes_a_page():
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "notebooks.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    table = {"text/html": ["<style>td {}</style>\n", "<table border=1>\n", "  <td>1</td></table>"]}
    outputs = [
        {"output_type": "stream", "text": ["\x1b[1mbold\x1b[0m\n"]},
        {"output_type": "display_data", "data": table},
        {"output_type": "display_data", "data": {"image/png": "aaaa\nbbbb\n"}},
        {"output_type": "execute_result", "data": {"text/plain": ["3"]}},
    ]
    code = {"cell_type": "code", "source": ["1 +\n", "2"], "outputs": outputs}
    text = {"cell_type": "markdown", "source": "# Title"}
    assert hook.to_markdown({"cells": [text, code]}).split("\n\n") == [
        "# Title",
        "````python\n1 +\n2\n````",
        "````text\nbold\n````",
        "<table><td>1</td></table>",
        '<img alt="Output of the cell above" src="data:image/png;base64,aaaabbbb">',
        "````text\n3\n````",
    ]


# Negative controls: what these tests would find


def test_what_a_page_fetches_is_found():
    font = '<link rel=stylesheet href="https://fonts.example/a.css"><a href="https://pydvl.org">'
    assert fetched(font) == ["https://fonts.example/a.css"]


def test_the_tests_find_jobs_commands_and_code():
    assert len(JOBS) >= 2
    assert {"run", "top", "info"} <= {line.split()[0] for _, line in COMMANDS}
    assert len(WITH_CODE) >= 8


@pytest.mark.parametrize(
    "line", ["rum job.yaml", "top", "top influences.zarr --tset 3", "run job.yaml --jobs many"]
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(click.UsageError):
        check_command(line)


def test_a_wrong_job_is_found(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: causal-lm\nmodel: base\ntrain: a\ntest: b\nout: c\ntokens: 3\n")
    with pytest.raises(JobError, match="line 6: 'tokens' is unknown"):
        read_job(path, {})
