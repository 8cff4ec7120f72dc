"""What the GPU benchmark stands on: processes that decode as tasks of Ray Data do, and figures that stay."""

import io
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beamclip.data.cache import read_manifest
from beamclip.data.config import AugmentConfig, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.index import read_starts
from beamclip.data.listing import list_shards
from beamclip.data.order import order_of
from beamclip.data.rows import read_rows_here
from beamclip.data.shards import Columns
from beamclip.data.stream import WorkerShare, worker_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def test_a_pool_of_processes_hands_over_the_rows_of_a_cache_as_one_process_reads_them(tmp_path: Path) -> None:
    from support.cached_distillation import write_teacher
    from support.decode_pool import decode_pool
    from support.made_shards import Sample, write_shards
    from support.random_cache import write_random_cache

    from beamclip.models.clip import load_clip

    shards, teacher, cache = tmp_path / "shards", tmp_path / "teacher", tmp_path / "cache"
    shards.mkdir()
    teacher.mkdir()
    write_shards((Sample("jpg", picture(n), f"picture {n}") for n in range(48)), 16, shards)
    write_teacher(32, teacher)
    write_random_cache(shards, load_clip(str(teacher)), 2, cache, 1)

    found = list_shards(str(cache))
    share = WorkerShare(order_of(np.array([16] * 3), 32, 0, 1), 8)
    decoding = Decoding(32, AugmentConfig(), CaptionConfig(), seed=0)
    columns, starts = Columns(views=read_manifest(str(cache)).views((0,))), read_starts(found)[0]

    def rows(read):
        stream = worker_rows(found, starts, columns, share, 0, read, decoding)
        taken = list(islice(stream, 100))
        stream.close()
        return taken

    with decode_pool(2, tmp_path) as read:
        pooled = rows(read)
    here = rows(read_rows_here)
    assert [(number, row["key"], row["embeddings"]) for number, row in pooled] == [
        (number, row["key"], row["embeddings"]) for number, row in here
    ]
    assert all(np.array_equal(a["crop"], b["crop"]) for (_, a), (_, b) in zip(pooled, here, strict=True))
    assert not list(tmp_path.glob("decoded-*"))


def test_an_error_is_a_figure_and_what_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    from support.timed_parts import Report

    began = time.time()
    report = Report(tmp_path / "figures.jsonl", began, began + 60)
    report.attempt("fails", 1, lambda: [][0])
    report.attempt("long", 90, lambda: report.figure("never", 1))
    report.attempt("short", 1, lambda: report.figure("images/s", 12.5))
    figures = report.figures()
    assert figures.pop("fails").startswith("failed: IndexError")
    assert figures.pop("long").startswith("skipped: ")
    assert figures == {"images/s": 12.5}
