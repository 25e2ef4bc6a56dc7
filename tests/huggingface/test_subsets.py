"""Some samples of a file in a file of the same kind: what is read again is what was kept."""

import json

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, load_from_disk
from pyarrow import parquet

from pydvl_datainf.errors import OutputExistsError, SourceError
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.huggingface.subsets import write_subset

KEPT = [1, 2, 4]
CHAT = [{"role": "user", "content": "\u2028 é"}, {"role": "assistant", "content": "a\nb"}]
LINES = [
    '{"text":  "spaces stay", "n": 1.50}',
    json.dumps({"messages": CHAT}, ensure_ascii=False),
    '{"text": "\\u00e9scaped", "big": 1e3}',
    "   ",
    '{"text": "line 5"}',
    '{"text": "the last has no line end", "deep": {"a": [1, {}]}}',
]


def subset(source, out, positions=KEPT, **settings):
    write_subset(source, read_records(source), positions, out, **settings)
    return out


ADDED = {"n": [7, None, 0.5], "of several": ["a", 'b, "c"', "two\nlines"]}


def values(path):
    return [record for _, record in read_records(path)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_json_stay_as_they_are(tmp_path, end, mark):
    source = tmp_path / "train.jsonl"
    source.write_bytes((mark + end.join(LINES)).encode())
    out = subset(source, tmp_path / "a" / "next.jsonl")
    kept = [LINES[i] for i in (1, 2, 5)]  # the blank one is no sample
    assert out.read_bytes() == (mark + "".join(line + end for line in kept)).encode()
    assert values(out) == [values(source)[i] for i in KEPT]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fields_are_added_behind_those_of_a_line(tmp_path, end):
    source = tmp_path / "train.jsonl"
    lines = ['{"skipped": 1}', '{"big": 1e3,  "n": 1.50} ', "{}", "", "{ }", '{"deep": {}}']
    source.write_bytes(end.join(lines).encode())
    out = subset(source, tmp_path / "next.jsonl", [1, 2, 4], added={"é": [0, None, "}"]})
    kept = ['{"big": 1e3,  "n": 1.50, "\\u00e9": 0}', '{"\\u00e9": null}']
    last = '{"deep": {}, "\\u00e9": "}"}'
    assert out.read_bytes() == "".join(line + end for line in [*kept, last]).encode()
    assert values(out)[0] == {**values(source)[1], "é": 0}


@pytest.mark.parametrize(("suffix", "s"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_are_added_behind_those_of_a_table(tmp_path, suffix, s, end):
    rows = [f"a{s}plain", f'"b"{s}"two{end}{end}lines{s}"', f"{s}", "", f'd{s}"end{end}"']
    source = tmp_path / f"train{suffix}"
    source.write_bytes(end.join([f'label{s}"te{end}xt"', *rows]).encode())
    out = subset(source, tmp_path / f"next{suffix}", [1, 2, 3], added=ADDED)
    told = [dict(zip(ADDED, row, strict=True)) for row in zip(*ADDED.values(), strict=True)]
    as_text = [{name: "" if v is None else str(v) for name, v in row.items()} for row in told]
    assert values(out) == [values(source)[i + 1] | as_text[i] for i in range(3)]
    assert rows[1] + s in out.read_bytes().decode()


@pytest.mark.parametrize("name", ["train.parquet", "train"])
def test_columns_are_added_to_tables_and_folders(tmp_path, name):
    data = Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 1, -1, 0]})
    data = data.cast_column("label", ClassLabel(names=["bad", "good"]))
    source = tmp_path / name
    (data.to_parquet if source.suffix else data.save_to_disk)(source)
    more = {"label_of_text": ["x", None, "y"], "n": [1, 2, None]}
    out = subset(source, tmp_path / name.replace("train", "next"), added=more)
    rows = [dict(zip(more, row, strict=True)) for row in zip(*more.values(), strict=True)]
    assert values(out) == [values(source)[i] | row for i, row in zip(KEPT, rows, strict=True)]
    empty = tmp_path / name.replace("train", "empty")
    subset(source, empty, [], added={name: [] for name in more})
    assert empty.exists()


@pytest.mark.parametrize(("suffix", "s"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_quoted_texts_of_several_lines_stay_as_they_are(tmp_path, suffix, s, end, mark):
    header = f'label{s}"te{end}xt"'
    rows = [
        f"a{s}plain",
        f'"b"{s}"two{end}{end}lines{s} and ""quotes"""',
        f"{s}empty first",
        "",
        f"c{s}NA",
        f'd{s}"end{end}"',
    ]
    source = tmp_path / f"train{suffix}"
    source.write_bytes((mark + end.join([header, *rows])).encode())
    out = subset(source, tmp_path / f"next{suffix}")
    kept = [header, *(rows[i] for i in (1, 2, 5))]
    assert out.read_bytes() == (mark + "".join(row + end for row in kept)).encode()
    assert values(out) == [values(source)[i] for i in KEPT]
    assert len(values(source)) == 5


def test_tables_keep_types_and_what_datasets_says_of_them(tmp_path):
    table = pa.table(
        {
            "text": [f"t{i}" for i in range(5)],
            "nested": [[{"role": "user", "content": str(i)}] for i in range(5)],
            "small": pa.array(range(5), pa.int8()),
            "blob": [b"\x00", None, b"\xff", b"", b"x"],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {}}})})
    source = tmp_path / "train.parquet"
    parquet.write_table(table, source)
    out = subset(source, tmp_path / "next.parquet")
    written = parquet.read_table(out)
    assert written.schema.equals(parquet.read_table(source).schema, check_metadata=True)
    assert written.to_pylist() == table.take(KEPT).to_pylist()


def test_folders_of_datasets_keep_their_features(tmp_path):
    data = Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 1, -1, 0]})
    data = data.cast_column("label", ClassLabel(names=["bad", "good"]))
    data.save_to_disk(tmp_path / "train")
    out = subset(tmp_path / "train", tmp_path / "next")
    written = load_from_disk(str(out))
    assert written.features == data.features
    assert written["label"][:] == [1, 1, 0]
    assert values(out) == [values(tmp_path / "train")[i] for i in KEPT]
    subset(tmp_path / "train", out, [0], overwrite=True)
    assert load_from_disk(str(out))["text"][:] == ["a"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n' * 5)
    return path


def test_what_is_there_stays(tmp_path, source):
    out = tmp_path / "next.jsonl"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"next\.jsonl is there\. .* overwrite=True"):
        subset(source, out)
    assert out.read_text() == "mine"
    subset(source, out, [0], overwrite=True)
    assert out.read_text() == '{"a": 1}\n'


def test_the_data_itself_is_never_replaced(tmp_path, source):
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    for out in (source, link):
        with pytest.raises(OutputExistsError, match="is the data itself, which is never replaced"):
            subset(source, out, overwrite=True)
    assert source.read_text() == '{"a": 1}\n' * 5


@pytest.mark.parametrize("name", ["next.csv", "next", "next.json"])
def test_another_kind_is_refused(tmp_path, source, name):
    with pytest.raises(SourceError, match=r"choose a name ending in \.jsonl"):
        subset(source, tmp_path / name)


def test_a_file_is_there_whole_or_not_at_all(tmp_path, source, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        subset(source, tmp_path / "next.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_a_quote_in_an_unquoted_header_does_not_reach_further(tmp_path):
    rows = [f'say "{i}\tyes\n' for i in range(5)]
    source, out = tmp_path / "train.tsv", tmp_path / "next.tsv"
    source.write_text("".join(['"prompt\tanswer\n', *rows]))
    write_subset(source, read_records(source, quoted=False), [1, 4], out, quoted=False)
    assert out.read_text() == '"prompt\tanswer\n' + rows[1] + rows[4]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_views_in_parquet_stay_as_they_are(tmp_path, kind):
    values = pa.array([f"text {i}" for i in range(6)]).cast(kind)
    table = pa.table({"n": list(range(6)), "view": values})
    parquet.write_table(table, tmp_path / "train.parquet")
    out = subset(tmp_path / "train.parquet", tmp_path / "next.parquet", [4, 1])
    expected = parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert parquet.read_table(out).to_pylist() == [expected[4], expected[1]]


def test_what_is_added_without_quotes_keeps_to_its_column(tmp_path):
    source, out = tmp_path / "train.csv", tmp_path / "next.csv"
    source.write_text('text,label\nsay "a,1\nb,2\n')
    records = read_records(source, quoted=False)
    write_subset(source, records, [0], out, added={"n": ['"c']}, quoted=False)
    assert out.read_text() == 'text,label,n\nsay "a,1,"c\n'
    with pytest.raises(SourceError, match=r"Without quotes ',' and line breaks cannot stand in"):
        write_subset(
            source, records, [0], tmp_path / "other.csv", added={"n": ["c,d"]}, quoted=False
        )
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "next.csv"}
