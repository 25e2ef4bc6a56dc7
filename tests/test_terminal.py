"""What a terminal gets to see of texts that come from anybody."""

import json
import sys
import unicodedata

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, run_influences
from pydvl_datainf.cli import main
from pydvl_datainf.terminal import LONGEST, visible

TRICKS = {
    "\x1b[31m": r"\x1b[31m",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b2J": r"\x9b2J",
    "\r": r"\r",
    "\x08": r"\x08",
    "\x7f": r"\x7f",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\u200b": r"\u200b",
    "\u2028": r"\u2028",
    "\ufeff": r"\ufeff",
    "\U000e0041": r"\U000e0041",
}
HOSTILE = "[red]a[/red][link=x]" + "".join(TRICKS) + "é 漢 \u0301b"
SHOWN = "[red]a[/red][link=x]" + "".join(TRICKS.values()) + "é 漢 \u0301b"
FORBIDDEN = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in
             ("Cc", "Cf", "Zl", "Zp") and c not in "\n\t"]  # fmt: skip
N, M = 6, 3


def test_what_a_terminal_obeys_or_hides_becomes_an_escape():
    assert visible(HOSTILE) == SHOWN
    assert visible("two\n\tlines, é, ש, 漢, 🙂") == "two\n\tlines, é, ש, 漢, 🙂"
    assert visible("\ud800") == r"\ud800"


def test_long_texts_are_cut_and_say_so():
    assert visible("a" * LONGEST) == "a" * LONGEST
    assert visible("a" * (LONGEST + 1)) == "a" * LONGEST + "… (10,001 characters)"
    assert visible("\x1b" * 20, 10) == r"\x1b" * 10 + "… (20 characters)"


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2))
    return DataInfInfluence(model, F.cross_entropy, block_structure={HOSTILE: ["0.weight"]})


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 3, generator=generator), torch.arange(length) % 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run all of whose texts are hostile, in a folder that is."""
    place = tmp_path_factory.mktemp("hostile") / f"{HOSTILE.replace('/', '')}.zarr"
    run_influences(
        build(),
        samples(M, 2),
        samples(N, 1),
        place,
        ids={side: [f"{HOSTILE}{i}" for i in range(n)] for side, n in (("train", N), ("test", M))},
        metadata={
            "train": {"text": [HOSTILE] * N, "label": ["x" * 2 * LONGEST] * N},
            "test": {"text": [HOSTILE] * M},
            "run": {HOSTILE: HOSTILE, "nested": {HOSTILE: HOSTILE}},
        },
        progress=False,
    )
    return place


def shown(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None)
    text = result.stdout + result.stderr
    assert [c for c in FORBIDDEN if c in text] == []
    assert max(map(len, text.split())) < 2 * LONGEST
    return text


def test_tables_show_escapes(store, tmp_path):
    text = shown("info", store, "--blocks")
    assert text.count(SHOWN) >= 3  # a block, and what was told
    assert SHOWN in shown("top", store, "--k", 2)
    assert SHOWN + "1" in shown("top", store, "--test", f"{HOSTILE}1", "--k", 2)
    shown("report", store, "-o", tmp_path / f"{HOSTILE.replace('/', '')}.html")


def test_messages_show_escapes(store, tmp_path):
    assert SHOWN in shown("top", store, "--test", HOSTILE, code=1)
    absent = tmp_path / HOSTILE.replace("/", "")
    assert SHOWN.replace("/", "") in shown("info", absent, code=1)
    assert SHOWN.replace("/", "") in shown("report", store, "-o", store, code=1)
    assert SHOWN in shown("top", store, "--most", HOSTILE, code=2)
    assert SHOWN in shown(HOSTILE, code=2)


@pytest.mark.parametrize("name", ["fingerprint", "created", "versions", "rows_in"])
def test_messages_that_quote_a_store_show_escapes(store, tmp_path, name):
    place = tmp_path / "run.zarr"
    place.mkdir()
    content = json.loads((store / "zarr.json").read_text())
    content["attributes"][name] = [HOSTILE]
    (place / "zarr.json").write_text(json.dumps(content))
    assert f"{name} is [" in shown("info", place, code=1)
    (place / "zarr.json").write_text(json.dumps(content | {"node_type": HOSTILE}))
    shown("info", place, code=1)


def test_warnings_show_escapes():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match="is frozen") as caught:
        DataInfInfluence(model, F.cross_entropy, block_structure={HOSTILE: ["0.weight", "0.bias"]})
    assert SHOWN in str(caught[0].message)
