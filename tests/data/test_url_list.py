"""URL lists in all formats, and those that cannot be used."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from beamclip.data.url_list import read_url_list
from beamclip.errors import InputError

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


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_each_format_gives_the_same_table(tmp_path: Path, ending: str) -> None:
    path = write_list(tmp_path / f"list.{ending}")
    table = read_url_list(path, "url", "caption", ("id", "n"))
    assert table.to_pylist() == LIST.select(["id", "n", "caption", "url"]).to_pylist()


def test_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv")
    with pytest.raises(InputError, match=r"no column 'link'.*url, caption, id, n"):
        read_url_list(path, "link", None, ())


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("absent.csv", None, "not found"),
        ("list.xlsx", "", "unknown format"),
        ("list.csv", "url,caption\n", "empty"),
        ("list.csv", "", "empty"),
        ("list.jsonl", "", "empty"),
        ("list.jsonl", "{", "cannot be read"),
        ("list.parquet", "no parquet", "cannot be read"),
        ("list.csv", "url,url\na,b\n", "2 columns are named"),
    ],
)
def test_unusable_list_is_the_users_mistake(
    tmp_path: Path, name: str, content: str | None, word: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=word):
        read_url_list(tmp_path / name, "url", None, ())


def test_dates_become_text_that_json_can_hold(tmp_path: Path) -> None:
    table = LIST.append_column("when", pa.array([0, 86400], pa.timestamp("s")))
    pq.write_table(table, tmp_path / "list.parquet")
    kept = read_url_list(tmp_path / "list.parquet", "url", None, ("when",)).column("when").to_pylist()
    assert [text[:10] for text in json.loads(json.dumps(kept))] == ["1970-01-01", "1970-01-02"]


def test_reserved_columns_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sha256"):
        read_url_list(write_list(tmp_path / "list.csv"), "url", None, ("sha256",))


def test_missing_urls_become_empty_text(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": null, "caption": "a"}\n{"url": "http://a/1"}\n')
    table = read_url_list(tmp_path / "list.jsonl", "url", "caption", ())
    assert table.column("url").to_pylist() == ["", "http://a/1"]
