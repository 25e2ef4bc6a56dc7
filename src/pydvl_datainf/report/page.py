"""The page: one HTML file with its style, its script and its data, and no way to the network."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib.metadata import distribution
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pydvl_datainf._version import __version__
from pydvl_datainf.report.contents import Contents
from pydvl_datainf.report.file import MARK

EXPORTS = re.compile(r"\bexport\s*\{([^}]*)\};?")
"""The end of a bundle of JavaScript, which names what it is for."""

UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""What might end a script, or a line of one, before its time."""


def page_of(contents: Contents) -> bytes:
    """Puts a report together.

    Args:
        contents: what stands in it.

    Returns:
        The page, in UTF-8.
    """
    return rendered(
        "report.html.j2",
        template("report.css"),
        _script(),
        contents=contents,
        data=Markup(json_in_html(contents.data)),
        licence=_licence(),
    )


def rendered(name: str, style: str, script: str, **told: Any) -> bytes:
    """Fills a template of a page.

    Args:
        name: of the template.
        style: text of the style element.
        script: text of the script element.
        told: what else the template shows.

    Returns:
        The page, in UTF-8.
    """
    environment = Environment(
        loader=PackageLoader("pydvl_datainf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(name).render(
        version=__version__,
        mark=Markup(MARK),
        policy=policy_of(style, script),
        style=Markup(style),
        script=Markup(script),
        **told,
    )
    return html.encode("utf-8", errors="replace")  # halves of surrogate pairs


def policy_of(style: str, script: str) -> str:
    """The Content-Security-Policy: this style and this script run, and nothing is fetched.

    Args:
        style: text of the style element.
        script: text of the script element.

    Returns:
        The policy.
    """
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def json_in_html(value: Any) -> str:
    r"""JSON for a script element, whatever texts are in it.

    Args:
        value: what JSON holds.

    Returns:
        JSON without the characters that mean something to HTML.

    Example:
        >>> json_in_html({"text": "</script>"})
        '{"text":"\\u003c/script\\u003e"}'
    """
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return written.translate(UNSAFE)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def template(name: str) -> str:
    """The text of a file among the templates, with line ends as HTML reads them.

    Args:
        name: of the file.

    Returns:
        The text.
    """
    text = files("pydvl_datainf.report").joinpath("templates", name).read_text("utf-8")
    return text.replace("\r\n", "\n")  # which the hash must match


def _script() -> str:
    """DataTables and our own script as one, so that nothing has to be imported."""
    bundle = _itables("html/dt_bundle.js").replace("\r\n", "\n")
    found = EXPORTS.search(bundle)
    default = found and re.search(r"([\w$]+)\s+as\s+default", found[1])
    if not found or not default or "</script" in bundle.lower():
        raise ImportError(
            "The bundle of DataTables in the package itables is not of the form that this version "
            "knows: pip install 'itables>=2.2,<3'"
        )
    whole = bundle[: found.start()] + bundle[found.end() :]
    whole = whole.replace("<!--", "\\x3c!--")  # in strings and patterns; HTML reads it otherwise
    own = template("report.js")
    return f"\n{whole}\n{{\nconst DataTable = {default[1]};\n{own}\n}}\n"


def _licence() -> str:
    return distribution("itables").read_text("licenses/LICENSE") or "The MIT licence."


def _itables(name: str) -> str:
    return (_itables_folder() / name).read_text("utf-8")


def _itables_folder() -> Path:
    spec = find_spec("itables")  # found without importing it, which takes pandas' time
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])
