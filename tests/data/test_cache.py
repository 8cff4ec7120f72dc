"""The teacher cache's files: what is written is what is read, row by row, whatever was lost."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamclip.data.cache import (
    CachedTeacher,
    CachedViews,
    CacheManifest,
    cache_schema,
    differences,
    draws_column,
    embedding_column,
    finished_manifest,
    is_cache,
    read_manifest,
    write_cache_shard,
    write_manifest,
)
from beamclip.data.listing import list_shards
from beamclip.data.order import PIECE
from beamclip.data.shards import Columns, iterate_rows
from beamclip.errors import InputError

TEACHERS = (
    CachedTeacher("first", "a" * 64, 3, "bf16", {"size": 32}),
    CachedTeacher("second", "b" * 64, 5, "fp32", {"size": 32}),
)
MANIFEST = CacheManifest(
    teachers=TEACHERS,
    image_size=32,
    augmentations=2,
    augmentation={"flip_prob": 0.5, "rotate": 0.0},
    draws=4,
    seed=0,
    captions=False,
    source="shards",
    source_fingerprint="1 shard",
)
ROWS = 300
LOST = {0, 7, 128, 299}


def value(row: int, view: int, teacher: int) -> float:
    """What tells one embedding from all others, exact in half precision."""
    return 4 * row + 2 * view + teacher


def table(first: int, count: int) -> pa.Table:
    rows = range(first, first + count)
    columns = {
        "key": [f"{row:04d}" for row in rows],
        "caption": [f"caption {row}" for row in rows],
        "json": [json.dumps({"label": str(row % 3)}) for row in rows],
        "problem": ["corrupt image" if row in LOST else None for row in rows],
        "image": [None if row in LOST else bytes([row % 256]) * 10 for row in rows],
    }
    for view in range(2):
        columns[draws_column(view)] = [
            None if row in LOST else np.full(4, row + view, "<f4").tobytes() for row in rows
        ]
        for index, teacher in enumerate(TEACHERS):
            columns[embedding_column(index, view)] = [
                None if row in LOST else np.full(teacher.embed_dim, value(row, view, index), "<f2").tobytes()
                for row in rows
            ]
    return pa.Table.from_pydict(columns, cache_schema(MANIFEST))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One shard, written in tables of 50 rows."""
    write_manifest(str(tmp_path), MANIFEST)
    write_cache_shard(str(tmp_path), "00000", (table(i, 50) for i in range(0, ROWS, 50)), MANIFEST)
    return tmp_path


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
@pytest.mark.parametrize("teachers", [(0, 1), (1,)])
def test_each_row_has_its_own_embeddings_of_the_epochs_view(
    cache: Path, epoch: int, teachers: tuple[int, ...]
) -> None:
    shard = replace(list_shards(str(cache))[0], views=CachedViews(teachers, 2))
    rows = list(iterate_rows(shard, Columns(), range(ROWS), epoch))
    assert [row["key"] for row in rows] == [f"{row:04d}" for row in range(ROWS)]
    assert {number for number, row in enumerate(rows) if row["problem"]} == LOST
    view = epoch % 2
    for number, row in enumerate(rows):
        if number in LOST:
            assert row["problem"] == "corrupt image"
            continue
        assert row["epoch"] == epoch
        assert np.frombuffer(row["draws"], "<f4").tolist() == [number + view] * 4
        for teacher, embedding in zip(teachers, row["embeddings"], strict=True):
            expected = [value(number, view, teacher)] * TEACHERS[teacher].embed_dim
            assert np.frombuffer(embedding, "<f2").tolist() == expected


def test_rows_far_apart_come_without_the_others(cache: Path) -> None:
    (shard,) = list_shards(str(cache))
    asked = np.array([1, 127, 129, 290])
    shard = replace(shard, views=CachedViews((0,), 2))
    rows = list(iterate_rows(shard, Columns(), asked, epoch=1))
    assert [row["key"] for row in rows] == ["0001", "0127", "0129", "0290"]
    found = [np.frombuffer(row["embeddings"][0], "<f2")[0] for row in rows]
    assert found == [value(number, 1, 0) for number in asked.tolist()]


def test_a_cache_serves_as_plain_labelled_images_too(cache: Path) -> None:
    (shard,) = list_shards(str(cache))
    row = next(iterate_rows(shard, Columns(caption=True, label="label"), range(5, 6)))
    assert (row["caption"], row["label"], row["image"]) == ("caption 5", "2", bytes([5]) * 10)
    assert row["draws"] is None
    assert row["embeddings"] == []


def test_a_shard_does_not_count_before_its_last_row_is_written(tmp_path: Path) -> None:
    def breaks_off():
        yield table(0, 50)
        raise RuntimeError("power cut")

    write_manifest(str(tmp_path), MANIFEST)
    with pytest.raises(RuntimeError, match="power cut"):
        write_cache_shard(str(tmp_path), "00000", breaks_off(), MANIFEST)
    with pytest.raises(InputError, match="no finished shard"):
        list_shards(str(tmp_path))


def test_row_groups_are_the_pieces_that_training_reads(cache: Path) -> None:
    metadata = pq.ParquetFile(cache / "00000.parquet").metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [PIECE] * (ROWS // PIECE) + [ROWS % PIECE] * (ROWS % PIECE > 0)


def test_the_manifest_comes_back_as_it_was_and_says_whether_it_is_finished(cache: Path) -> None:
    assert is_cache(str(cache))
    assert read_manifest(str(cache)) == MANIFEST
    with pytest.raises(InputError, match="not finished"):
        finished_manifest(str(cache))
    write_manifest(str(cache), replace(MANIFEST, samples=ROWS))
    assert finished_manifest(str(cache)).samples == ROWS


def test_teachers_of_a_cache_that_does_not_say_so_have_texts(cache: Path) -> None:
    """As caches were written before there were teachers of vision only."""
    file = cache / "cache.json"
    content = json.loads(file.read_text())
    assert [teacher.pop("vision_only") for teacher in content["teachers"]] == [False] * len(TEACHERS)
    file.write_text(json.dumps(content))
    assert read_manifest(str(cache)) == MANIFEST


@pytest.mark.parametrize("content", ["", "{}", '{"format": 0}', '{"format": 2, "teachers": 3}'])
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(InputError, match=r"cache\.json"):
        read_manifest(str(tmp_path))


def test_differences_name_what_differs_and_pass_over_what_is_made_later() -> None:
    moved = tuple(replace(teacher, address="elsewhere") for teacher in TEACHERS)
    same = replace(MANIFEST, teachers=moved, samples=5, skipped={"x": 1}, versions={"torch": "9"})
    assert differences(MANIFEST, same) == []
    other = replace(
        MANIFEST,
        seed=3,
        augmentation={"flip_prob": 0.5, "rotate": 5.0},
        teachers=(TEACHERS[0], replace(TEACHERS[1], fingerprint="c" * 64)),
    )
    found = "; ".join(differences(MANIFEST, other))
    for part in ("seed: 0 there, 3 here", "rotate: 0.0 there, 5.0 here", "second (fp32, bbbbbbbbbbbb) there"):
        assert part in found
    assert "flip_prob" not in found
