"""The training file that a user names of a run that no job made: what counts as the same."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zarr.storage import MemoryStore

from pydvl_datainf import HessianFreeInfluence, run_influences
from pydvl_datainf.errors import SourceError
from pydvl_datainf.jobfile.named_file import NamedFile
from tuned import write_lines


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


RECORDS = [
    {
        "id": f"s{i}",
        "messages": talk(f"What is {i}?", f"It is {i}."),
        "labels": ["jazz", f"rock, {i}"],
        "numbers": [i, 2],
        "source": {"page": i},
        "chosen": f"Say {i}: yes",
        "share": i,
        "good": i == 0,
        "completion": f" It is {i}.",
    }
    for i in range(2)
]
KEPT = {
    "messages": [f"user: What is {i}?\nassistant: It is {i}." for i in range(2)],
    "labels": ['jazz, "rock, 0"', 'jazz, "rock, 1"'],
    "numbers": ["[0, 2]", "[1, 2]"],
    "source": ['{"page": 0}', '{"page": 1}'],
    "share": [0.0, 1.0],  # as a column is kept in which another value is no whole number
    "good": [True, False],
    "completion": [" It is 0.</s>", " It is 1.</s>"],
}


def made(kept):
    """A run of two samples, of which these columns are kept."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(2, 2), torch.tensor([0, 1])), 2)
    columns = {"ids": {"train": ["s0", "s1"]}, "metadata": {"train": kept}, "progress": False}
    influence = HessianFreeInfluence(torch.nn.Linear(2, 2), F.cross_entropy)
    return run_influences(influence, loader, loader, MemoryStore(), **columns)


@pytest.fixture(scope="module")
def run():
    return made(KEPT)


def test_what_the_run_was_made_of_is_the_same(run, tmp_path):
    file = write_lines(tmp_path / "train.jsonl", RECORDS)
    assert [record for _, record in NamedFile(file).records(run)] == RECORDS


EDITED = {
    "a turn of a conversation": {"messages": talk("What is 1?", "It is 2.")},
    "a turn more": {"messages": talk("What is 1?", "It is 1.", "Thanks.")},
    "a role": {"messages": talk("What is 1?", "It is 1.")[::-1]},
    "a turn without its text": {"messages": [*talk("What is 1?"), {"role": "assistant"}]},
    "no turns": {"messages": []},
    "text in place of a conversation": {"messages": "What is 1?"},
    "a label": {"labels": ["jazz", "rock"]},
    "labels in another order": {"labels": ["rock, 1", "jazz"]},
    "a number in a list": {"numbers": [1, 3]},
    "a mapping": {"source": {"page": 2}},
    "a number": {"share": 1.5},
    "a truth value": {"good": True},
    "a text": {"completion": " It is 2."},
    "nothing": {"messages": None},
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edited_sample_is_refused(run, tmp_path, edit):
    ((name, value),) = EDITED[edit].items()
    file = write_lines(tmp_path / "train.jsonl", [RECORDS[0], RECORDS[1] | {name: value}])
    with pytest.raises(SourceError, match=rf"train.jsonl, line 2: '{name}' is .*, and was .* when"):
        NamedFile(file).records(run)


def test_a_value_that_was_taken_out_is_refused(run, tmp_path):
    lacking = {name: value for name, value in RECORDS[1].items() if name != "messages"}
    file = write_lines(tmp_path / "train.jsonl", [RECORDS[0], lacking])
    with pytest.raises(SourceError, match="line 2: 'messages' is None, and was"):
        NamedFile(file).records(run)


def test_a_turn_of_no_text_is_kept_as_none(tmp_path):
    calls = [
        *talk("What is 1?"),
        {"role": "assistant", "tool_calls": "add"},
    ]  # as datasets fills it
    file = write_lines(tmp_path / "train.jsonl", [{"id": f"s{i}", "talk": calls} for i in range(2)])
    kept = ["user: What is 1?\nassistant: None"] * 2
    assert len(NamedFile(file).records(made({"talk": kept}))) == 2


def test_pairs_out_of_which_trl_took_the_prompt(tmp_path):
    texts = {"prompt": ["Say 0:", "Say 1:"], "chosen": [" yes</s>", " yes</s>"]}
    run = made(texts)
    file = write_lines(tmp_path / "train.jsonl", RECORDS)
    assert len(NamedFile(file).records(run)) == 2
    write_lines(file, [RECORDS[0], RECORDS[1] | {"chosen": "Say 2: yes"}])
    with pytest.raises(SourceError, match="line 2: 'chosen' is 'Say 2: yes', and was"):
        NamedFile(file).records(run)
    talks = [
        {"id": f"s{i}", "chosen": talk(f"Tell {i}", "Yes."), "rejected": talk(f"Tell {i}", "No.")}
        for i in range(2)
    ]
    answers = {"chosen": ["assistant: Yes."] * 2, "rejected": ["assistant: No."] * 2}
    run = made({"prompt": ["user: Tell 0", "user: Tell 1"], **answers})
    write_lines(file, talks)
    assert len(NamedFile(file).records(run)) == 2
    write_lines(file, [talks[0], talks[1] | {"rejected": talk("Tell 1", "Yes.")}])
    edited = (
        r"line 2: 'rejected' is 'user: Tell 1\\nassistant: Yes.', and was 'assistant: No.' when"
    )
    with pytest.raises(SourceError, match=edited):
        NamedFile(file).records(run)


def test_text_of_csv_is_the_number_or_truth_value_that_it_tells(run, tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("id,share,good\ns0,0,TRUE\ns1,1.00,false\n")
    assert len(NamedFile(file).records(run)) == 2
    file.write_text("id,share,good\ns0,0,TRUE\ns1,much,false\n")
    with pytest.raises(SourceError, match="line 3: 'share' is 'much', and was"):
        NamedFile(file).records(run)


def test_a_text_that_is_a_token_alone_is_compared(tmp_path):
    file = write_lines(tmp_path / "train.jsonl", [{"id": f"s{i}", "text": "x"} for i in range(2)])
    with pytest.raises(SourceError, match="line 1: 'text' is 'x', and was '<b>' when"):
        NamedFile(file).records(made({"text": ["<b>", "<b>"]}))
