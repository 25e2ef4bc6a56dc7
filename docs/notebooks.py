"""A hook of mkdocs: the notebooks as pages, with the outputs that are stored in them."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURE = "image/png"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_config(config: Any) -> Any:
    """Puts the notebooks below their overview in the navigation.

    Args:
        config: of the site.

    Returns:
        The same with more entries.
    """
    tutorials = {"Tutorials": ["notebooks/README.md", *map(_uri, _notebooks())]}
    config.nav = [tutorials if "Tutorials" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each notebook.

    Args:
        files: of the site so far.
        config: of the site.

    Returns:
        The same with more pages.
    """
    for path in _notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        files.append(File.generated(config, _uri(path), content=to_markdown(notebook)))
    return files


def to_markdown(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown.

    Args:
        notebook: in format 4, as JSON holds it.

    Returns:
        Texts as they are, code and its outputs in fences, pictures within the text.
    """
    return "\n\n".join(part for cell in notebook["cells"] for part in _parts(cell))


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _uri(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix(".md").as_posix()


def _parts(cell: dict[str, Any]) -> list[str]:
    source = _joined(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return [source]
    if cell["cell_type"] != "code" or not source:
        return []
    return [_fenced("python", source), *map(_shown, cell["outputs"])]


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _fenced("text", _joined(output["text"]).rstrip())
    data = output.get("data", {})
    if PICTURE in data:
        picture = _joined(data[PICTURE]).replace("\n", "")
        return f'<img alt="Output of the cell above" src="data:{PICTURE};base64,{picture}">'
    html = _joined(data.get("text/html", ""))
    if "<table" in html and "<script" not in html:
        return _table(html)
    return _fenced("text", _joined(data.get("text/plain", "")))


def _table(html: str) -> str:
    """In the looks of the site, and on one line, since Markdown would take an indented for code."""
    bare = re.sub(r"<table[^>]*>", "<table>", re.sub(r"<style.*?</style>", "", html, flags=re.S))
    return "".join(line.strip() for line in bare.splitlines())


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{COLOUR.sub('', text)}\n````"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
