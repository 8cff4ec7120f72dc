"""URL lists in all formats: each row and text as it stands in the file, or a message with the line."""

import csv
import datetime
import decimal
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from beamclip.errors import InputError
from beamclip.ingest.list_lines import BLOCK_BYTES
from beamclip.ingest.url_list import hash_url_list, read_url_list

LIST = pa.table(
    {
        "url": ["http://a/1", "http://a/2"],
        "caption": ["null", "a, b"],
        "id": ["007", "12e4"],
        "n": [3, 4],
    }
)


def write_list(path: Path) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in LIST.to_pylist())
    if path.name.startswith("list.parquet"):
        pq.write_table(LIST, path)
    elif ".jsonl" in path.name:
        with pa.output_stream(path, compression="detect") as file:
            file.write(lines.encode())
    else:
        options = pa_csv.WriteOptions(delimiter="\t" if ".tsv" in path.name else ",")
        with pa.output_stream(path, compression="detect") as file:
            pa_csv.write_csv(LIST, file, options)
    return path


def read(path: Path, content: Any, caption: str | None = "caption", keep: tuple[str, ...] = ()) -> pa.Table:
    """The list in a file of this content: text, bytes, a table, or what JSON lines hold."""
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_url_list(path, "url", caption, keep)


def written(captions: list[str], **how: Any) -> str:
    """A list of these captions by Python's csv module, and the URLs u0, u1, ..."""
    file = io.StringIO()
    writer = csv.writer(file, **how)
    writer.writerow(["caption", "url"])
    writer.writerows([caption, f"u{i}"] for i, caption in enumerate(captions))
    return file.getvalue()


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_each_format_gives_the_same_table(tmp_path: Path, ending: str) -> None:
    path = write_list(tmp_path / f"list.{ending}")
    table = read_url_list(path, "url", "caption", ("id", "n"))
    assert table.to_pylist() == LIST.select(["id", "n", "caption", "url"]).to_pylist()


def test_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv")
    with pytest.raises(InputError, match=r"no column 'link'.*url, caption, id, n"):
        read_url_list(path, "link", None, ())


PLAIN_QUOTES = ["a bus", '"hello world', '"the end" she said', 'a 5" pipe', 'said "bye', '"all of it"', ""]


def test_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    content = "caption\turl\n" + "".join(f"{text}\tu{i}\n" for i, text in enumerate(PLAIN_QUOTES))
    table = read(tmp_path / "list.tsv", content)
    assert table.column("caption").to_pylist() == PLAIN_QUOTES
    assert table.column("url").to_pylist() == [f"u{i}" for i in range(len(PLAIN_QUOTES))]


QUOTABLE = ['"hello world', 'he said "hi"', "two\nlines, and\ta tab", '""', "", "plain", "a\u2028b\x0bc\x85d"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoted_fields_of_pythons_csv_writer_come_back(
    tmp_path: Path, delimiter: str, quoting: int, end: str
) -> None:
    content = written(QUOTABLE, delimiter=delimiter, quoting=quoting, lineterminator=end)
    table = read(tmp_path / f"list.{'csv' if delimiter == ',' else 'tsv'}", "\ufeff" + content)
    assert table.column("caption").to_pylist() == QUOTABLE
    assert table.column("url").to_pylist() == [f"u{i}" for i in range(len(QUOTABLE))]


def test_minimally_quoted_tsv_is_read_as_quoted_where_no_row_has_line_breaks(tmp_path: Path) -> None:
    captions = ['he said "hi"', "plain"]
    content = written(captions, delimiter="\t", lineterminator="\n")
    assert read(tmp_path / "list.tsv", content).column("caption").to_pylist() == captions


@pytest.mark.slow
def test_quoted_fields_are_whole_across_blocks(tmp_path: Path) -> None:
    # Two blocks of 8 MiB, and a little: a row is cut in its first field or in its second.
    captions = [f'{i},\n"{"x" * (i % 1013)}' for i in range(BLOCK_BYTES // 500)]
    file = io.StringIO()
    csv.writer(file).writerows([("caption", "url"), *zip(captions, captions, strict=True)])
    table = read(tmp_path / "list.csv", file.getvalue() + "\n")
    assert table.column("caption").to_pylist() == captions
    assert table.column("url").to_pylist() == captions


REFUSED = [
    ("absent.csv", None, "not found"),
    ("list.xlsx", "", "unknown format"),
    ("list.csv", "url,caption\n", "empty"),
    ("list.csv", "", "empty"),
    ("list.csv.gz", b"", "empty"),
    ("list.jsonl", "", "empty"),
    ("list.jsonl", "{", "line 1 is not valid JSON"),
    ("list.jsonl", '{"url": "u"}\n\n["u"]', "line 3 is not a JSON object"),
    ("list.jsonl", '{"url": "u"}\n{"n": ' + "[" * 200_000 + "]" * 200_000 + "}", "line 2 is nested too deep"),
    ("list.jsonl", '{"url": "u"}\n{"n": ' + "9" * 5_000 + "}", "line 2 holds a number of thousands of dig"),
    ("list.jsonl", '{"url": "u"}\n{"url": "\\ud800"}', "line 2 holds half of a surrogate pair"),
    ("list.jsonl", b'{"url": "u"}\n{"url": "\xe9"}', "line 2 is not UTF-8"),
    ("list.parquet", "no parquet", "cannot be read"),
    ("list.csv", "url,url\na,b\n", "2 columns are named"),
    ("list.csv", "http://a/1,x\n", "first line must hold the names"),
    ("list.csv", 'a,url\nx,u\n"hello,u\nx,u\n"the end" she\n', 'line 3: a field begins with a quote.*"hello'),
    ("list.csv", 'a,url\nx,u\n"he said \\"hi\\"",u\n', "line 3: a field begins with a quote"),
    ("list.csv", 'a,url\n"x\ny",u\n"hello,u\n', "line 4: a field begins with a quote"),
    ("list.csv", 'a,url\n"x\ny",u\n\nx\n', "line 5 has 1 fields and the header 2"),
    ("list.tsv", 'a\turl\n"x\tu\nx\tu\ty\n', "line 3 has 3 fields and the header 2"),
    ("list.tsv", b"a\turl\nx\tu\nx\t\xe9\n", "line 3 is not UTF-8"),
    ("list.tsv", "a\turl\nx\tu\nx\ry\tu\n", "line 3 has a carriage return"),
    ("list.tsv", "a\turl\nx\tu\n".encode("utf-16"), "UTF-16"),
    ("list.csv", b"url\n" + b"x" * (25 << 20), "line 2 is longer than"),
    ("list.csv.gz", gzip.compress(b"url\n" + b"u\n" * 99, mtime=0)[:-9], "cannot be read"),
    ("list.csv.gz", gzip.compress(bytes(range(35, 127)) * 9, mtime=0)[:20] + bytes(99), "cannot be read"),
    ("list.csv.gz", b"url\nu\n", "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), REFUSED)
def test_unusable_list_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=f"{name}: .*{words}") as refusal:
        read_url_list(tmp_path / name, "url", None, ())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("address", ["nosuch://bucket/list.csv", "http://127.0.0.1:9/list.csv"])
def test_list_at_an_address_that_does_not_answer_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(InputError, match=address) as refusal:
        read_url_list(address, "url", None, ())
    assert "\n" not in str(refusal.value)


def test_json_texts_and_numbers_stay_what_they_are(tmp_path: Path) -> None:
    lines = (
        '{"url": "u", "date": "2020-01-02T03:04Z", "id": 18446744073709551615, "n": 1, "x": 0.3412235081195}',
        '{"url": "u", "date": "2020-01-03", "id": 7, "n": null, "x": 2, "mixed": "a", "nested": {"a": [1]}}',
        '{"url": "u", "date": null, "id": 9007199254740993, "n": 3, "x": 1e-3, "mixed": 5, "nested": [2]}',
    )
    keep = ("date", "id", "n", "x", "mixed", "nested")
    table = read(tmp_path / "list.jsonl", "\n".join(lines), None, keep)
    assert {name: table.column(name).to_pylist() for name in keep} == {
        "date": ["2020-01-02T03:04Z", "2020-01-03", None],
        "id": ["18446744073709551615", "7", "9007199254740993"],
        "n": [1, None, 3],
        "x": [0.3412235081195, 2.0, 0.001],
        "mixed": [None, "a", "5"],
        "nested": [None, '{"a": [1]}', "[2]"],
    }


def test_a_json_number_that_a_double_would_change_is_text(tmp_path: Path) -> None:
    numbers = ("0.123456789012345678901", "1e400", "2.5")
    lines = "".join(f'{{"url": "u", "x": {number}}}\n' for number in numbers)
    assert read(tmp_path / "list.jsonl", lines, None, ("x",)).column("x").to_pylist() == list(numbers)


def test_integers_with_gaps_are_integers_in_every_format(tmp_path: Path) -> None:
    expected = [0, None, 7]
    of_pandas = pa.table({"url": ["a", "b", "c"], "label": pa.array([0.0, float("nan"), 7.0])})
    lists = {
        "list.csv": "url,label\na,0\nb,\nc,7\n",
        "list.jsonl": '{"url":"a","label":0}\n{"url":"b"}\n{"url":"c","label":7}\n',
        "list.parquet": of_pandas,
        "nullable.parquet": of_pandas.set_column(1, "label", pa.array(expected, pa.uint64())),
    }
    for name, content in lists.items():
        labels = read(tmp_path / name, content, None, ("label",)).column("label")
        assert labels.to_pylist() == expected, name
        assert pa.types.is_integer(labels.type), name


def test_parquet_values_that_json_has_not_become_text(tmp_path: Path) -> None:
    table = pa.table({
        "url": pa.array(["u0", "u1"]).dictionary_encode(),
        "caption": pa.array(["a", None], pa.large_string()),
        "when": pa.array([0, 86400], pa.timestamp("s")),
        "day": pa.array([datetime.date(2020, 1, 2), None]),
        "id": pa.array([decimal.Decimal(2**64), None], pa.decimal128(20, 0)),
        "big": pa.array([2**64 - 1, 1], pa.uint64()),
        "x": [0.5, float("nan")],
    })  # fmt: skip
    rows = read(tmp_path / "list.parquet", table, keep=("when", "day", "id", "big", "x")).to_pylist()
    when = [row.pop("when")[:10] for row in rows]
    assert when == ["1970-01-01", "1970-01-02"]
    assert rows == [
        {"day": "2020-01-02", "id": str(2**64), "big": 2**64 - 1, "x": 0.5, "caption": "a", "url": "u0"},
        {"day": None, "id": None, "big": 1, "x": None, "caption": None, "url": "u1"},
    ]


def test_a_folder_of_parts_is_one_list(tmp_path: Path) -> None:
    folder = tmp_path / "list.parquet"
    folder.mkdir()
    for i in (1, 0):
        pq.write_table(pa.table({"url": [f"u{i}"], "n": pa.array([i], pa.int32() if i else pa.int64())}),
                       folder / f"part-{i}.parquet")  # fmt: skip
    (folder / "_SUCCESS").touch()
    before = hash_url_list(folder)
    assert read_url_list(folder, "url", "auto", ("n",)).to_pylist() == [
        {"n": 0, "url": "u0"},
        {"n": 1, "url": "u1"},
    ]
    pq.write_table(pa.table({"url": ["other"], "n": [0]}), folder / "part-1.parquet")
    assert hash_url_list(folder) != before
    (folder / "part-2.csv").write_text("url,n\nu,1\n")
    with pytest.raises(InputError, match="several formats"):
        read_url_list(folder, "url", None, ())


def test_captions_are_left_out_only_where_nobody_asked_for_them(tmp_path: Path) -> None:
    content = "url,label\nu,0\n"
    assert read(tmp_path / "list.csv", content, "auto").column_names == ["url"]
    assert read(tmp_path / "full.csv", "url,caption\nu,a\n", "auto").column_names == ["caption", "url"]
    with pytest.raises(InputError, match=r"no column 'caption'.*--caption-column none"):
        read(tmp_path / "list.csv", content, "caption")


def test_reserved_columns_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sha256"):
        read_url_list(write_list(tmp_path / "list.csv"), "url", None, ("sha256",))


def test_missing_urls_become_empty_text(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": null, "caption": "a"}\n{"url": "http://a/1"}\n')
    table = read_url_list(tmp_path / "list.jsonl", "url", "caption", ())
    assert table.column("url").to_pylist() == ["", "http://a/1"]


@pytest.mark.parametrize("damaged", ["url", "caption", "id"])
def test_a_parquet_list_with_text_that_is_not_utf8_is_refused_by_path(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "list.parquet"
    table = pa.table({"url": ["http://a/1"], "caption": ["a"], "id": ["b"]})
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    pq.write_table(table.set_column(table.column_names.index(damaged), damaged, bad), path)
    with pytest.raises(InputError, match=r"UTF-?8") as raised:
        read_url_list(path, "url", "caption", ("id",))
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
