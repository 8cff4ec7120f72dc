"""Shards as img2dataset lays them out: 00000.tar, its sidecar 00000.parquet, and 00000_stats.json."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Sample = dict[str, Any]


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., list[Sample]]:
    """make_samples(shard, count, kind="png"): samples that differ in colour, key, caption and label."""

    def make(shard: int, count: int, kind: str = "png") -> list[Sample]:
        samples = []
        for i in range(count):
            key = f"{shard:05d}{i:04d}"
            encoded = io.BytesIO()
            Image.new("RGB", (12, 12), (shard, i, 128)).save(encoded, {"jpg": "jpeg"}.get(kind, kind))
            fields = {"key": key, "label": f"class{i % 3}"}
            samples.append(
                {
                    "key": key,
                    kind: encoded.getvalue(),
                    "json": json.dumps(fields).encode(),
                    "txt": f"caption {key}".encode(),
                }
            )
        return samples

    return make


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """write_tar(folder, shard, samples, claimed=None): write a finished tar shard; return its path."""

    def write(folder: Path, shard: int, samples: Sequence[Sample], claimed: int | None = None) -> Path:
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for sample in samples:
                for suffix in sorted(sample.keys() - {"key"}):
                    member = tarfile.TarInfo(f"{sample['key']}.{suffix}")
                    member.size = len(sample[suffix])
                    tar.addfile(member, io.BytesIO(sample[suffix]))
        names = [sample["key"].encode("utf-8", "replace").decode() for sample in samples]
        sidecar = {"key": names, "status": ["success"] * len(samples)}
        pq.write_table(pa.table(sidecar), folder / f"{shard:05d}.parquet")
        write_stats(folder, shard, len(samples) if claimed is None else claimed)
        return path

    return write


@pytest.fixture(scope="session")
def write_parquet() -> Callable[..., Path]:
    """write_parquet(folder, shard, samples, failed=()): write a parquet shard; `failed` rows lack images."""

    def write(folder: Path, shard: int, samples: Sequence[Sample], failed: Sequence[int] = ()) -> Path:
        rows = [
            {
                "key": sample["key"],
                "status": "failed_to_download" if i in failed else "success",
                "caption": sample["txt"].decode() if "txt" in sample else None,
                "label": json.loads(sample["json"])["label"],
                "jpg": None if i in failed else sample.get("jpg"),
            }
            for i, sample in enumerate(samples)
        ]
        path = folder / f"{shard:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        write_stats(folder, shard, len(samples) - len(failed))
        return path

    return write


def write_stats(folder: Path, shard: int, successes: int) -> None:
    """Write the statistics file that marks a shard as finished."""
    content = {"count": successes, "successes": successes, "failed_to_download": 0, "status_dict": {}}
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, make_samples: Callable[..., list[Sample]], write_tar: Callable[..., Path]) -> Path:
    """A folder with three shards of 9, 4 and 10 samples."""
    for shard, count in enumerate((9, 4, 10)):
        write_tar(tmp_path, shard, make_samples(shard, count))
    return tmp_path
