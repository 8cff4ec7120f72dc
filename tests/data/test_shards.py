"""Every sample that a shard claims leaves the reader once: as it is, or counted under a reason."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.data.row_sets import Rows
from beamclip.data.rows import Bundle, Segment, read_bundle
from beamclip.data.shards import (
    BROKEN_SHARD,
    MISSING_CAPTION,
    MISSING_IMAGE,
    MISSING_LABEL,
    ROW_SCHEMA,
    ROWS_PER_BLOCK,
    Columns,
    Row,
    Shard,
    check_texts,
    list_labelled,
    list_shards,
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
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give the folder that `pipelines/ingest"):
        list_shards(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give shards with a label column"):
        list_labelled(str(tmp_path / "nowhere"))


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(InputError, match="nope://bucket/shards: cannot be opened: Protocol not known: nope"):
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"successes": null}', '{"successes": "many"}'])
def test_statistics_without_a_count_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "00007_stats.json").write_text(content)
    with pytest.raises(InputError, match=r"00007_stats\.json: no count of `successes` in it"):
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
        ("dog/notes.txt", "dog", b"notes.txt"),
    ]


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
    assert keys(rows_of(shard, ALL_BUT_CAPTION)) == ["dog/a.jpg", "dog/c.jpg"]


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


def remove(tar: Path) -> int:
    tar.unlink()
    return 0


def remove_all(tar: Path) -> int:
    tar.with_suffix(".parquet").unlink()
    return remove(tar)


@pytest.mark.parametrize("damage", [cut_in_data, cut_in_header, scratch_header, empty, remove, remove_all])
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
    check_texts(list_shards(str(tmp_path)), Columns(caption=True, more_texts=("label",)), "shards")


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


def test_shards_are_read_from_any_fsspec_address(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/shards-of-a-test", recursive=True)
    try:
        assert read("memory://shards-of-a-test") == read(tmp_path) == read(f"file://{tmp_path}")
        assert list_shards("memory://shards-of-a-test") == [
            Shard("memory:///shards-of-a-test/00000.tar", 3, "tar")
        ]
    finally:
        memory.rm("/shards-of-a-test", recursive=True)


def test_a_lost_connection_is_no_broken_shard(
    tmp_path: Path, make_samples: Make, write_tar: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 3))
    shard = list_shards(str(tmp_path))[0]

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError("storage is away")

    monkeypatch.setattr(fsspec, "open", refuse)
    with pytest.raises(ConnectionResetError, match="storage is away"):
        rows_of(shard, ALL)
