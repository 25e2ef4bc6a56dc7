"""A hook of mkdocs: benchmarks, notebooks and the changelog as pages of the site.

Pages link to them by their place in the repository, so that links work in a checkout. Here such
links are turned into those of the site. What is no page, such as a source file, stays as text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BROUGHT = (
    "CHANGELOG.md",
    "benchmarks/README.md",
    "benchmarks/*/README.md",
    "benchmarks/*/results/*.png",
    "notebooks/README.md",
)
CODE = r"^ *(?P<fence>`{3,}).*?^ *(?P=fence) *$|`[^`\n]+`"
LINK = r"(?P<mark>!?)\[(?P<text>[^]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
CODE_OR_LINK = re.compile(f"{CODE}|{LINK}", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the repository's other pages and their pictures.

    Args:
        files: of the site so far.
        config: of the site.

    Returns:
        The same with more files.
    """
    for pattern in BROUGHT:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links by places in the repository into links within the site.

    Args:
        markdown: of a page.
        page: where it is.
        config: of the site.
        files: of the site.

    Returns:
        The Markdown with other links.
    """
    here, there = page.file.src_uri, set(files.src_uris)
    return CODE_OR_LINK.sub(lambda found: _rewritten(found, here, there), markdown)


def _rewritten(found: re.Match[str], here: str, there: set[str]) -> str:
    target, text = found["target"], found["text"]
    if target is None or ":" in target:  # code; http:// and the like
        return found[0]
    place = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(here)), target))
    uri = re.sub(r"\.ipynb$", ".md", place.removeprefix("docs/"))
    if uri in there:
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{found['mark']}[{text}]({relative}{found['anchor'] or ''})"
    return found[0] if place.startswith("docs/") else text


def _in_repository(uri: str) -> str:
    """The place of a page in the repository."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri
