"""Every sample that a shard claims leaves the reader once: as it is, or counted under a reason."""

import errno
import io
import itertools
import json
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem

from beamclip.data import sample_rows, shards
from beamclip.data.bundles import Bundle, Segment, read_bundle
from beamclip.data.captions import CAPTION_CHARACTERS
from beamclip.data.image_folder import NO_IMAGE_BESIDE
from beamclip.data.listing import check_texts, fingerprint, list_labelled, list_shards
from beamclip.data.lost_samples import FirstLost, lost_sample
from beamclip.data.shard_file import MissingShardError, Rows, UnansweredShardError
from beamclip.data.shards import (
    BROKEN_SHARD,
    MISSING_CAPTION,
    MISSING_IMAGE,
    MISSING_LABEL,
    MISSING_SHARD,
    ROW_SCHEMA,
    ROWS_PER_BLOCK,
    TOO_LARGE,
    UNREADABLE,
    Columns,
    Row,
    Shard,
)
from beamclip.errors import InputError

ALL = Columns(caption=True, label="label")
ALL_BUT_CAPTION = Columns(label="label")

Make = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]


def read(folder: Path | str, columns: Columns = ALL, cuts: Sequence[int] = ()) -> list[Row]:
    """All rows below a folder, each shard read in the pieces that ranks would read."""
    rows = []
    for shard in list_shards(str(folder)):
        bounds = [0, *cuts, shard.samples]
        for start, stop in pairwise(bounds):
            if start < stop:
                rows += rows_of(shard, columns, range(start, stop))
    return rows


def rows_of(shard: Shard, columns: Columns, rows: Rows | None = None) -> list[Row]:
    """Some rows of a shard, by default all, through the tables that Ray Data moves."""
    asked = range(shard.samples) if rows is None else rows
    tables = read_bundle(Bundle((Segment(shard, asked),)), columns)
    return [row for table in tables for row in table.to_pylist()]


def keys(rows: Sequence[Row]) -> list[str]:
    return [row["key"] for row in rows if row["problem"] is None]


def losses(rows: Sequence[Row]) -> Counter[str]:
    return Counter(row["problem"] for row in rows if row["problem"] is not None)


def test_finished_shards_are_listed_by_name_with_the_counts_of_their_statistics(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    for shard, count in ((2, 3), (0, 5), (1, 4)):
        write_tar(tmp_path, shard, make_samples(shard, count))
    write_tar(tmp_path, 3, [])
    (tmp_path / "00004.tar").write_bytes(b"still being written")
    found = list_shards(str(tmp_path))
    assert [Path(shard.path).name for shard in found] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [shard.samples for shard in found] == [5, 4, 3]
    assert {shard.format for shard in found} == {"tar"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give the folder that `beamclip ingest"):
        list_shards(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give shards with a label column"):
        list_labelled(str(tmp_path / "nowhere"))


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(
        InputError, match=r"nope://bucket/shards: cannot be read \(Protocol not known: nope\)"
    ):
        list_shards("nope://bucket/shards")


def test_a_folder_without_statistics_holds_no_finished_shard(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"no finished shard \(no \*_stats\.json among 1 files\)"):
        list_shards(str(tmp_path))


def test_shards_that_are_all_empty_are_refused(tmp_path: Path, write_tar: Write) -> None:
    write_tar(tmp_path, 0, [])
    write_tar(tmp_path, 1, [])
    with pytest.raises(InputError, match="all 2 shards are empty"):
        list_shards(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"successes": null}', '{"successes": "many"}', '{"successes": 1e999}', "[" * 100_000],
)
def test_statistics_without_a_count_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "00007_stats.json").write_text(content)
    with pytest.raises(InputError, match=r"00007_stats\.json: no count of `successes` in it"):
        list_shards(str(tmp_path))


@pytest.mark.parametrize("count", [-1, 10**12])
def test_statistics_with_a_count_that_cannot_be_are_named(tmp_path: Path, count: int) -> None:
    (tmp_path / "00007_stats.json").write_text(json.dumps({"successes": count}))
    with pytest.raises(InputError, match=rf"00007_stats\.json: {count} `successes` are no count"):
        list_shards(str(tmp_path))


def test_class_folders_are_listed_with_their_images(tmp_path: Path) -> None:
    for name, files in {"dog": ["b.PNG", "a.jpg", "notes.txt"], "cat": ["c"], "none": []}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(file.encode())
    shards = list_labelled(str(tmp_path))
    assert [(Path(shard.path).name, shard.samples) for shard in shards] == [("cat", 1), ("dog", 3)]
    rows = [row for shard in shards for row in rows_of(shard, ALL_BUT_CAPTION)]
    assert [(row["key"], row["label"], row["image"]) for row in rows] == [
        ("cat/c", "cat", b"c"),
        ("dog/a.jpg", "dog", b"a.jpg"),
        ("dog/b.PNG", "dog", b"b.PNG"),
        ("dog/notes.txt", None, None),
    ]
    assert losses(rows) == {NO_IMAGE_BESIDE: 1}


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    """Class folders as people have them."""
    root, store = tmp_path / "val", tmp_path / "store"
    for folder in (root / "dog/nested/deep", root / "dog/.checkpoints", root / ".cache", store / "cats"):
        folder.mkdir(parents=True)
    for file in (
        "dog/a.jpg",
        "dog/nested/deep/b.gif",
        "dog/.DS_Store",
        "dog/Thumbs.db",
        "dog/.checkpoints/a.jpg",
    ):
        (root / file).write_bytes(b"x")
    for file in (root / ".cache/c.jpg", root / "classes.txt", root / ".hidden", store / "cats/c.png"):
        file.write_bytes(b"x")
    (root / "cat").symlink_to(store / "cats")
    (root / "dog/one.png").symlink_to(store / "cats/c.png")
    (root / "dog/more").symlink_to(store)
    (root / "dog/gone.jpg").symlink_to(store / "gone.jpg")
    (root / "dog/around").symlink_to(root)
    (root / "dog/nested/again").symlink_to(root / "dog/nested")
    (root / "dog/each.jpg").symlink_to(root / "dog/other.jpg")
    (root / "dog/other.jpg").symlink_to(root / "dog/each.jpg")
    os.mkfifo(root / "dog/pipe.jpg")
    return root


def test_linked_and_nested_folders_are_read_and_what_is_no_file_is_counted_by_reason(untidy: Path) -> None:
    shards = list_labelled(str(untidy))
    rows = [row for shard in shards for row in rows_of(shard, ALL_BUT_CAPTION)]
    assert sum(shard.samples for shard in shards) == len(rows)
    assert [row["key"] for row in rows if row["problem"] is None] == [
        "cat/c.png",
        "dog/a.jpg",
        "dog/more/cats/c.png",
        "dog/nested/deep/b.gif",
        "dog/one.png",
    ]
    assert losses(rows) == {
        "hidden file": 3,
        "dangling link": 3,
        "not a regular file": 1,
        "folder linked again or into itself": 2,
        "file outside of the class folders": 1,
    }


def test_a_file_that_cannot_be_read_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dog").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "dog" / name).write_bytes(b"x")
    (shard,) = list_labelled(str(tmp_path))
    with (tmp_path / "dog/b.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte without a block on the disk
    assert losses(rows_of(shard, ALL_BUT_CAPTION)) == {"image too large": 1}
    (tmp_path / "dog/b.jpg").unlink()
    rows = rows_of(shard, ALL_BUT_CAPTION)
    assert keys(rows) == ["dog/a.jpg", "dog/c.jpg"]
    # Rows keep their numbers.
    assert [row["problem"] for row in rows] == [None, "unreadable file", None]


def test_a_class_folder_whose_name_is_not_utf8_is_read_like_any(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\xe8"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        for content, file in ((b"x", b"a.jpg"), (b"", b"b.jpg")):
            with open(folder + b"/" + file, "wb") as image:
                image.write(content)
    found = list_labelled(str(tmp_path))
    assert fingerprint(found).startswith("2 shards, 4 samples")
    rows = [row for shard in found for row in rows_of(shard, ALL_BUT_CAPTION)]
    assert {row["shard"] for row in rows} == {"caf\\udce8", "caf\\udce9"}
    assert {row["label"] for row in rows} == {"caf\\udce8", "caf\\udce9", None}
    assert losses(rows) == {MISSING_IMAGE: 2}


def test_a_folder_with_neither_shards_nor_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither finished shards nor class folders"):
        list_labelled(str(tmp_path))


def test_labelled_shards_are_found_like_any(tmp_path: Path, make_samples: Make, write_tar: Write) -> None:
    write_tar(tmp_path, 0, make_samples(0, 2))
    assert list_labelled(str(tmp_path)) == list_shards(str(tmp_path))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_tar_gives_key_bytes_caption_and_label_of_each_sample(
    tmp_path: Path, make_samples: Make, write_tar: Write, kind: str
) -> None:
    samples = make_samples(3, 5, kind)
    write_tar(tmp_path, 3, samples)
    for row, sample in zip(read(tmp_path), samples, strict=True):
        assert (row["key"], row["image"]) == (sample["key"], sample[kind])
        assert row["caption"] == f"caption {sample['key']}"
        assert row["label"] == json.loads(sample["json"])["label"]
        assert row["problem"] is None


def test_what_was_not_asked_for_is_not_read(tmp_path: Path, make_samples: Make, write_tar: Write) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3))
    rows = read(tmp_path, Columns())
    assert {(row["caption"], row["label"]) for row in rows} == {(None, None)}


def test_rows_come_in_blocks_that_carry_the_epoch(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    sample = make_samples(0, 1)[0]
    count = 2 * ROWS_PER_BLOCK + 3
    write_tar(tmp_path, 0, [{**sample, "key": f"{i:06d}"} for i in range(count)])
    shard = list_shards(str(tmp_path))[0]
    tables = list(read_bundle(Bundle((Segment(shard, range(count)),), epoch=7), ALL))
    assert [table.num_rows for table in tables] == [ROWS_PER_BLOCK, ROWS_PER_BLOCK, 3]
    assert {table.schema for table in tables} == {ROW_SCHEMA}
    assert {epoch for table in tables for epoch in table.column("epoch").to_pylist()} == {7}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_any_rows_of_a_shard_can_be_read_without_the_others(
    tmp_path: Path, make_samples: Make, write_tar: Write, write_parquet: Write, format: str
) -> None:
    samples = make_samples(0, 9, "jpg")
    if format == "tar":
        write_tar(tmp_path, 0, samples)
    else:
        write_parquet(tmp_path, 0, samples, failed=[0, 4, 5])
    shard, whole = list_shards(str(tmp_path))[0], read(tmp_path)
    for chosen in range(1, 2**shard.samples):
        numbers = np.array([i for i in range(shard.samples) if chosen >> i & 1])
        assert rows_of(shard, ALL, numbers) == [whole[number] for number in numbers]


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_pieces_of_a_shard_make_the_whole(
    tmp_path: Path, make_samples: Make, write_tar: Write, write_parquet: Write, format: str
) -> None:
    samples = make_samples(0, 9, "jpg")
    write_tar(tmp_path, 0, samples) if format == "tar" else write_parquet(tmp_path, 0, samples)
    whole = read(tmp_path)
    assert keys(whole) == [sample["key"] for sample in samples]
    for cut in range(10):
        assert read(tmp_path, cuts=[cut]) == whole
    assert read(tmp_path, cuts=[2, 2, 5, 8]) == whole


def test_samples_without_image_caption_or_label_are_counted_apart_and_the_others_delivered(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 12)
    del samples[1]["png"]
    samples[2]["png"] = b""
    del samples[3]["txt"]
    samples[4]["txt"] = b" \n"
    del samples[6]["json"]
    samples[7]["json"] = b"{broken"
    samples[8]["json"] = b'{"label": null}'
    samples[9]["json"] = b'["label"]'
    write_tar(tmp_path, 0, samples)
    rows = read(tmp_path)
    assert losses(rows) == {MISSING_IMAGE: 2, MISSING_CAPTION: 2, MISSING_LABEL: 4}
    assert keys(rows) == [samples[i]["key"] for i in (0, 5, 10, 11)]
    for cut in range(13):
        assert losses(read(tmp_path, cuts=[cut])) == losses(rows)


def test_labels_are_text_whatever_json_type_they_have(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 3)
    for sample, value in zip(samples, (7, "7", 0), strict=True):
        sample["json"] = json.dumps({"label": value}).encode()
    write_tar(tmp_path, 0, samples)
    assert [row["label"] for row in read(tmp_path)] == ["7", "7", "0"]


def test_damaged_utf8_in_a_caption_costs_no_sample(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 1)
    samples[0]["txt"] = b"caf\xe9"
    write_tar(tmp_path, 0, samples)
    assert [row["caption"] for row in read(tmp_path)] == ["caf�"]


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path, make_samples: Make, write_tar: Write) -> None:
    samples = make_samples(0, 3)
    for sample, name in zip(samples, ("caf\udce9", "caf\udce8", "café"), strict=True):
        sample["key"] = name
    write_tar(tmp_path, 0, samples)
    found = keys(read(tmp_path))
    assert len(set(found)) == 3
    assert found[2] == "café"


def test_the_words_about_a_name_that_is_not_utf8_fit_into_a_table(
    tmp_path: Path, make_samples: Make, write_tar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Iterator[Any]:
        raise EOFError("caf\udce9.png is cut off")

    write_tar(tmp_path, 0, make_samples(0, 1))
    monkeypatch.setattr(shards, "_rows_of", fail)
    table = pa.Table.from_pylist(read(tmp_path), ROW_SCHEMA)
    assert table["detail"].to_pylist() == ["EOFError: caf\\udce9.png is cut off"]


def test_equal_names_in_different_folders_of_a_tar_are_different_samples(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 3)
    for sample, key in zip(samples, ("cat/1", "dog/1", "./2"), strict=True):
        sample["key"] = key
    write_tar(tmp_path, 0, [{k: v for k, v in sample.items() if k in ("key", "png")} for sample in samples])
    assert keys(read(tmp_path, Columns())) == ["cat/1", "dog/1", "./2"]


def whole_samples(tar: Path, size: int, suffixes: Sequence[str]) -> int:
    """Samples whose members with these suffixes all end within the first `size` bytes."""
    with tarfile.open(tar) as opened:
        ends = [(m.name.split(".")[0], m.offset_data + m.size) for m in opened if m.name.endswith(suffixes)]
    return len({key for key, _ in ends} - {key for key, end in ends if end > size})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "suffixes"),
    [(ALL, (".json", ".png", ".txt")), (Columns(caption=True), (".png", ".txt")), (Columns(), (".png",))],
)
def test_a_tar_cut_anywhere_gives_its_whole_samples_and_counts_the_rest(
    tmp_path: Path, make_samples: Make, write_tar: Write, columns: Columns, suffixes: tuple[str, ...]
) -> None:
    tar = write_tar(tmp_path, 0, make_samples(0, 3))
    content = tar.read_bytes()
    with tarfile.open(tar) as opened:
        end = max(member.offset_data + member.size for member in opened)
    for size in range(0, end + 1024, 61):
        tar.write_bytes(content)
        whole = whole_samples(tar, size, suffixes)
        tar.write_bytes(content[:size])
        rows = read(tmp_path, columns)
        assert len(keys(rows)) == whole, size
        assert losses(rows) == ({BROKEN_SHARD: 3 - whole} if whole < 3 else {}), size


def cut_in_data(tar: Path) -> int:
    """Cut inside the image of the seventh sample; the whole ones before it."""
    with tarfile.open(tar) as opened:
        member = [m for m in opened if m.name.endswith(".png")][6]
    tar.write_bytes(tar.read_bytes()[: member.offset_data + member.size // 2])
    return 6


def cut_in_header(tar: Path) -> int:
    """Cut inside the header of the fourth sample's caption."""
    with tarfile.open(tar) as opened:
        member = [m for m in opened if m.name.endswith(".txt")][3]
    tar.write_bytes(tar.read_bytes()[: member.offset + 100])
    return 3


def scratch_header(tar: Path) -> int:
    """Overwrite the header of the third sample."""
    with tarfile.open(tar) as opened:
        member = [m for m in opened if m.name.endswith(".json")][2]
    content = bytearray(tar.read_bytes())
    content[member.offset : member.offset + 512] = b"\xff" * 512
    tar.write_bytes(content)
    return 2


def empty(tar: Path) -> int:
    tar.write_bytes(b"")
    return 0


@pytest.mark.parametrize("damage", [cut_in_data, cut_in_header, scratch_header, empty])
def test_a_damaged_tar_is_counted_exactly_however_it_is_split_over_ranks(
    tmp_path: Path, make_samples: Make, write_tar: Write, damage: Callable[[Path], int]
) -> None:
    samples = make_samples(0, 10)
    whole = damage(write_tar(tmp_path, 0, samples))
    write_tar(tmp_path, 1, make_samples(1, 5))
    wanted = [sample["key"] for sample in samples[:whole]] + [f"00001{i:04d}" for i in range(5)]
    for cut in range(11):
        rows = read_split(tmp_path, cut)
        assert keys(rows) == wanted, cut
        assert losses(rows) == {BROKEN_SHARD: 10 - whole}, cut


def read_split(folder: Path, cut: int) -> list[Row]:
    """The first shard in two pieces, the second whole."""
    first, second = list_shards(str(folder))
    pieces = [(first, 0, cut), (first, cut, 10), (second, 0, 5)]
    return [row for shard, start, stop in pieces for row in rows_of(shard, ALL, range(start, stop))]


def tagged(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples with tags, the first without a caption, the second without tags, the third with neither."""
    tags = [["animal", "wing"], None, [], ["animal", " "]]
    for sample, content in zip(samples, tags, strict=True):
        sample["json"] = json.dumps({"label": "class0", "tags": content}).encode()
    samples[0]["txt"] = b" "
    samples[2].pop("txt")
    return samples


def test_tags_stand_beside_the_caption_or_in_its_place(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, tagged(make_samples(0, 4)))
    rows = read(tmp_path, Columns(caption=True, more_texts=("tags", "nowhere")))
    want = [["animal", "wing"], ["caption 000000001"], ["caption 000000003", "animal"]]
    assert [row["texts"] for row in rows if row["problem"] is None] == want
    assert losses(rows) == {MISSING_CAPTION: 1}


def test_parquet_shards_give_their_tags_too(tmp_path: Path, make_samples: Make, write_parquet: Write) -> None:
    path = write_parquet(tmp_path, 0, make_samples(0, 2, "jpg"))
    table = pq.read_table(path)
    pq.write_table(table.append_column("tags", pa.array([["animal", "wing"], None])), path)
    rows = read(tmp_path, Columns(caption=True, more_texts=("tags",)))
    want = [["caption 000000000", "animal", "wing"], ["caption 000000001"]]
    assert [row["texts"] for row in rows] == want


def test_shards_without_captions_are_refused_before_anything_starts(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 3)
    for sample in samples:
        del sample["txt"]
    write_tar(tmp_path, 0, samples)
    shards = list_shards(str(tmp_path))
    with pytest.raises(InputError, match=r"none of the first 3 samples in .* has a caption\. Ingest"):
        check_texts(shards, Columns(caption=True), "shards")
    with pytest.raises(InputError, match=r"has a text in tags\. Ingest with --keep-columns tags"):
        check_texts(shards, Columns(caption=True, more_texts=("label", "tags")), "shards")
    check_texts(shards, Columns(caption=True, more_texts=("label",)), "shards")


def test_a_first_shard_that_is_broken_does_not_pass_for_one_without_captions(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3)).write_bytes(b"")
    write_tar(tmp_path, 1, make_samples(1, 3))
    columns = Columns(caption=True, more_texts=("label",))
    check_texts(list_shards(str(tmp_path)), columns, "shards")
    (tmp_path / "00001.tar").write_bytes(b"")
    # Nothing can be said of the texts then, and the rows are counted as lost in training.
    check_texts(list_shards(str(tmp_path)), columns, "shards")
    assert losses(read(tmp_path)) == {BROKEN_SHARD: 6}


def test_statistics_that_claim_too_much_cost_the_difference(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 4), claimed=6)
    rows = read(tmp_path)
    assert len(keys(rows)) == 4
    assert losses(rows) == {BROKEN_SHARD: 2}


def test_parquet_shards_give_their_successful_rows(
    tmp_path: Path, make_samples: Make, write_parquet: Write
) -> None:
    samples = make_samples(0, 11, "jpg")
    del samples[2]["txt"], samples[5]["jpg"]
    write_parquet(tmp_path, 0, samples, failed=(0, 4, 10))
    assert list_shards(str(tmp_path))[0].format == "parquet"
    for cut in range(9):
        rows = read(tmp_path, cuts=[cut])
        assert keys(rows) == [samples[i]["key"] for i in (1, 3, 6, 7, 8, 9)]
        assert losses(rows) == {MISSING_CAPTION: 1, MISSING_IMAGE: 1}
    row = rows[0]
    assert (row["image"], row["caption"], row["label"]) == (samples[1]["jpg"], "caption 000000001", "class1")


def test_a_parquet_shard_without_the_label_column_lacks_every_label(
    tmp_path: Path, make_samples: Make, write_parquet: Write
) -> None:
    write_parquet(tmp_path, 0, make_samples(0, 3, "jpg"))
    assert losses(read(tmp_path, Columns(label="synset"))) == {MISSING_LABEL: 3}


@pytest.mark.parametrize("kept", [0, 100])
def test_a_broken_parquet_shard_costs_all_its_samples(
    tmp_path: Path, make_samples: Make, write_parquet: Write, kept: int
) -> None:
    path = write_parquet(tmp_path, 0, make_samples(0, 7, "jpg"))
    path.write_bytes(path.read_bytes()[:kept])
    for cut in (0, 3):
        rows = read(tmp_path, cuts=[cut])
        assert keys(rows) == []
        assert losses(rows) == {BROKEN_SHARD: 7}


def test_a_damaged_row_group_costs_no_row_before_it(
    tmp_path: Path, make_samples: Make, write_parquet: Write
) -> None:
    samples = make_samples(0, 11, "jpg")
    path = write_parquet(tmp_path, 0, samples)
    images = pq.ParquetFile(path).metadata.row_group(1).column(4)
    assert images.path_in_schema == "jpg"
    with path.open("r+b") as file:
        file.seek(images.dictionary_page_offset)
        file.write(b"\xff" * 16)
    for cut in range(5):
        rows = read(tmp_path, cuts=[cut])
        assert keys(rows) == [sample["key"] for sample in samples[:4]]
        assert losses(rows) == {BROKEN_SHARD: 7}


def test_shards_are_read_from_any_fsspec_address(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/shards-of-a-test", recursive=True)
    try:
        assert read("memory://shards-of-a-test") == read(tmp_path) == read(f"file://{tmp_path}")
        (shard,) = list_shards("memory://shards-of-a-test")
        assert (shard.path, shard.samples) == ("memory:///shards-of-a-test/00000.tar", 3)
    finally:
        memory.rm("/shards-of-a-test", recursive=True)


def test_a_shard_whose_data_are_gone_is_refused_unless_it_may_be_missing(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3))
    (tmp_path / "00000.tar").rename(tmp_path / "elsewhere")
    write_tar(tmp_path, 1, make_samples(1, 2))
    with pytest.raises(InputError, match=r"1 of 2 shards have statistics and no data: 00000\.tar\. Bring"):
        list_shards(str(tmp_path))
    shards = list_shards(str(tmp_path), allow_missing=True)
    rows = [row for shard in shards for row in rows_of(shard, ALL)]
    assert losses(rows) == {MISSING_SHARD: 3}
    assert keys(rows) == ["000010000", "000010001"]


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_a_shard_that_is_gone_when_it_is_read_ends_with_its_path_and_the_node(
    tmp_path: Path, make_samples: Make, write_tar: Write, write_parquet: Write, format: str
) -> None:
    path = (write_tar if format == "tar" else write_parquet)(tmp_path, 0, make_samples(0, 3, "jpg"))
    strict, lenient = (list_shards(str(tmp_path), allow_missing=allow)[0] for allow in (False, True))
    path.unlink()
    node = ray.util.get_node_ip_address()
    with pytest.raises(MissingShardError, match=rf"{path}: cannot be read on node {node} \(FileNotFound"):
        rows_of(strict, ALL)
    assert losses(rows_of(lenient, ALL)) == {MISSING_SHARD: 3}


def test_what_lies_beside_a_tar_does_not_pass_for_the_shard(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3)).unlink()
    with pytest.raises(
        MissingShardError, match=r"00000\.parquet: .* \(FileNotFoundError: it has no images, and"
    ):
        read(tmp_path)


class FlakyFile(io.BytesIO):
    """Fails at some of the reads and seeks, which `calls` counts for all files together."""

    calls = itertools.count()
    failing: Container[int] = ()

    def _may_fail(self) -> None:
        if next(FlakyFile.calls) in FlakyFile.failing:
            raise OSError(errno.EBUSY, "Please reduce your request rate")

    def read(self, size: int | None = -1) -> bytes:
        self._may_fail()
        return super().read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        self._may_fail()
        return super().seek(place, whence)


@pytest.mark.parametrize("format", ["tar", "parquet"])
@pytest.mark.parametrize("failing", [{5, 15, 25}, {20, 60, 120, 200, 300}, range(3, 10**9)])
def test_a_store_that_is_busy_for_a_moment_is_asked_again_and_nothing_is_lost_or_doubled(
    tmp_path: Path,
    make_samples: Make,
    write_tar: Write,
    write_parquet: Write,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    failing: Container[int],
) -> None:
    """Where it stays busy, the store is at fault and not the shard."""
    path = (write_tar if format == "tar" else write_parquet)(tmp_path, 0, make_samples(0, 12, "jpg"))
    (shard,), whole = list_shards(str(tmp_path)), read(tmp_path)
    content = path.read_bytes()
    monkeypatch.setattr(LocalFileSystem, "open", lambda *_, **__: FlakyFile(content))
    monkeypatch.setattr(FlakyFile, "calls", itertools.count())
    monkeypatch.setattr(FlakyFile, "failing", failing)
    monkeypatch.setattr(shards, "RETRY_PAUSES", (0.0, 0.0, 0.0))
    if isinstance(failing, set):
        assert rows_of(shard, ALL) == whole
    else:
        with pytest.raises(UnansweredShardError, match="reduce your request rate"):
            rows_of(shard, ALL)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar's header with this field of 12 bytes for the size, and a right check sum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def binary(size: int) -> bytes:
    """GNU's form of sizes that octal digits cannot hold."""
    return (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")


def sparse(name: str) -> bytes:
    """One block of data that stands for eight gigabytes."""
    block = bytearray(header(name, b"%011o\0" % 512, b"S"))
    block[386:398], block[398:410], block[483:495] = b"0" * 11 + b"\0", b"%011o\0" % 512, b"7" * 11 + b"\0"
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block) + bytes(512)


HOSTILE = {
    "eight gigabytes": header("x.png", b"7" * 11 + b"\0"),
    "an exabyte": header("x.png", binary(2**60)),
    "less than nothing": header("x.png", binary(-1536)),
    "a long name of a terabyte": header("././@LongLink", binary(2**40), b"L"),
    "an extended header of a terabyte": header("pax", binary(2**40), b"x"),
    "a long name of less than nothing": header("././@LongLink", binary(-1024), b"L"),
    "long names without end": (header("././@LongLink", b"%011o\0" % 1, b"L") + b"x" + bytes(511)) * 3000,
    "a size in an extended header": header("pax", b"%011o\0" % 19, b"x")
    + b"19 size=-9999999999\n"
    + bytes(492),
    "holes": sparse("x.png"),
    "a device": header("x.png", b"%011o\0" % 0, b"4"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_member_of_impossible_size_costs_no_sample_before_it_and_no_memory(
    tmp_path: Path, make_samples: Make, write_tar: Write, kind: str
) -> None:
    tar = write_tar(tmp_path, 0, make_samples(0, 8))
    with tarfile.open(tar) as opened:
        at = next(member.offset for member in opened if member.name.startswith("000000005"))
    content = tar.read_bytes()
    tar.write_bytes(content[:at] + HOSTILE[kind] + content[at:])
    tracemalloc.start()
    rows = read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys(rows)[:5] == [f"00000000{i}" for i in range(5)]
    assert len(keys(rows)) + sum(losses(rows).values()) == 8
    assert peak < 30_000_000


def test_members_over_their_limit_are_not_read(
    tmp_path: Path, make_samples: Make, write_tar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_samples(0, 4)
    samples[1]["png"] += bytes(1 << 20)
    samples[2]["json"] = b'{"label": "class0"' + b" " * (1 << 20) + b"}"
    samples[3]["txt"] = b"so " * (1 << 20)
    write_tar(tmp_path, 0, samples)
    monkeypatch.setattr(sample_rows, "MAX_BYTES", 1 << 19)
    monkeypatch.setattr(sample_rows, "MOST_FIELDS_BYTES", 1 << 19)
    rows = read(tmp_path)
    assert [row["problem"] for row in rows] == [None, TOO_LARGE, TOO_LARGE, None]
    assert rows[3]["caption"] == ("so " * 1000)[:CAPTION_CHARACTERS].strip()
    assert [row["problem"] for row in read(tmp_path, Columns())] == [None, TOO_LARGE, None, None]


def test_json_that_cannot_be_held_is_a_problem_of_its_own_sample(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 7)
    samples[1]["json"] = b"[" * 100_000
    samples[2]["json"] = b'{"label": ' + b"9" * 5000 + b"}"
    samples[3]["json"] = b'{"label": NaN}'
    samples[4]["json"] = b'{"label": {"a": 1}}'
    samples[5]["json"] = b'{"label": "\\ud800 bird"}'
    write_tar(tmp_path, 0, samples)
    rows = read(tmp_path)
    lost = [MISSING_LABEL, MISSING_LABEL, MISSING_LABEL, UNREADABLE]
    assert [row["problem"] for row in rows] == [None, *lost, None, None]
    assert rows[5]["label"] == "\ufffd bird"
    assert rows[1]["detail"].startswith("its JSON: RecursionError")
    assert rows[4]["detail"] == "TypeError: a dict where a text is expected"
    # What nobody asks for is no problem.
    assert losses(read(tmp_path, Columns(caption=True))) == {}


def columns_of(samples: list[dict[str, Any]], **changed: pa.Array) -> pa.Table:
    columns = {
        "key": [sample["key"] for sample in samples],
        "caption": [sample["txt"].decode() for sample in samples],
        "label": [json.loads(sample["json"])["label"] for sample in samples],
        "jpg": [sample["jpg"] for sample in samples],
    }
    return pa.table({**columns, **changed})


def not_utf8(values: list[str]) -> pa.Array:
    """A column of text whose third value is not UTF-8."""
    array = pa.array(["\x01" if i == 2 else value for i, value in enumerate(values)])
    offsets, data = array.buffers()[1:]
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, offsets, pa.py_buffer(data.to_pybytes().replace(b"\x01", b"\xff"))]
    )


def test_parquet_columns_of_another_type_cost_what_cannot_be_used_of_them(
    tmp_path: Path, make_samples: Make, write_parquet: Write
) -> None:
    samples = make_samples(0, 5, "jpg")
    path = write_parquet(tmp_path, 0, samples)
    images, captions = [s["jpg"] for s in samples], [s["txt"].decode() for s in samples]

    def outcome(**changed: pa.Array) -> Any:
        pq.write_table(columns_of(samples, **changed), path)
        rows = read(tmp_path)
        return losses(rows) or [row["caption"] for row in rows]

    assert outcome(caption=pa.array(captions).dictionary_encode()) == captions
    assert outcome(caption=pa.array([caption.encode() for caption in captions])) == captions
    assert outcome(caption=pa.array([[caption, "more"] for caption in captions])) == captions
    assert outcome(caption=pa.array(range(5))) == ["0", "1", "2", "3", "4"]
    assert outcome(jpg=pa.array(images).dictionary_encode()) == captions
    assert outcome(key=pa.array([{"a": 1}] * 5)) == captions
    assert outcome(caption=not_utf8(captions)) == {UNREADABLE: 1}
    assert outcome(caption=pa.array([{"en": caption} for caption in captions])) == {UNREADABLE: 5}
    assert outcome(jpg=pa.array([{"bytes": image} for image in images])) == captions
    assert outcome(jpg=pa.array([{"pixels": image} for image in images])) == {UNREADABLE: 5}
    assert outcome(jpg=pa.array(["text"] * 5)) == {UNREADABLE: 5}
    assert outcome(jpg=pa.array(range(1, 6))) == {UNREADABLE: 5}
    assert outcome(status=pa.array(range(5))) == {BROKEN_SHARD: 5}


def test_the_line_on_a_lost_sample_names_shard_key_and_reason(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 6)
    for sample in samples[:4]:
        del sample["txt"]
    samples[4]["key"] = "4\x1b[2J"
    samples[4]["json"] = b"{"
    write_tar(tmp_path, 0, samples, claimed=9)
    found = FirstLost().new(lost_sample(row) for row in read(tmp_path) if row["problem"])
    assert [line for _, line in found] == [
        *(f"shard 00000.tar, sample 00000000{i}: missing caption" for i in range(3)),
        "shard 00000.tar, sample 4?[2J: missing label (its JSON: JSONDecodeError: Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1))",
        "shard 00000.tar: broken shard (it holds fewer samples than its statistics say)",
    ]
