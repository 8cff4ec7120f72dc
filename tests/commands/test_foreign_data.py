"""Data that beamclip did not write: each is trained on by one command, and counted exactly."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from beamclip.cluster import WorkersConfig
from beamclip.commands.distill import distill
from beamclip.commands.embed import embed
from beamclip.commands.options import DistillConfig, EmbedConfig
from beamclip.data.config import StreamConfig
from beamclip.data.listing import list_shards
from beamclip.errors import InputError
from beamclip.models.config import StudentConfig
from beamclip.training.config import CadenceConfig, OptimConfig

pytestmark = pytest.mark.slow

IMAGES = 41


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 2 * number, 128)).save(file, "png")
    return file.getvalue()


def write_by_webdataset(folder: Path) -> None:
    with webdataset.ShardWriter(str(folder / "part-%03d.tar"), maxcount=15, verbose=0) as writer:
        for number in range(IMAGES):
            writer.write({"__key__": f"sample{number}", "png": png(number), "cls": number % 3})


def write_by_tar(folder: Path) -> None:
    """As `tar` writes a folder, with what macOS adds to it."""
    with tarfile.open(folder / "all.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(IMAGES):
            for name, content in (
                (f"./a/{number:03d}.png", png(number)),
                (f"./a/._{number:03d}.png", b"mac"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_images(folder: Path) -> None:
    for number in range(IMAGES):
        (folder / f"{number:03d}.png").write_bytes(png(number))


def write_class_folders(folder: Path) -> None:
    for number in range(IMAGES):
        path = folder / f"class{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))


@pytest.mark.parametrize("write", [write_by_webdataset, write_by_tar, write_images, write_class_folders])
def test_a_student_is_trained_on_each_image_of_it(teacher, corpus, tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    config = DistillConfig(
        data=(str(data),),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        out=tmp_path / "run",
        student=StudentConfig(student="test_resnet"),
        stream=StreamConfig(batch_size=IMAGES),
        optim=OptimConfig(steps=2),
        cadence=CadenceConfig(log_every=1),
        workers=WorkersConfig(num_workers=0),
    )
    summary = distill(config)
    assert (summary.counts.attempted, summary.counts.succeeded) == (IMAGES, IMAGES)


def test_class_folders_whose_names_hold_dots_are_embedded_apart(ray_cluster, teacher, tmp_path):
    for name in ("a.1", "a.2"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(png(number))
    (tmp_path / "data" / "notes.txt").write_text("no class")
    config = EmbedConfig(data=str(tmp_path / "data"), teacher=str(teacher[0]), out=str(tmp_path / "cache"))
    summary = embed(replace(config, augmentations=1, captions=False))
    assert (summary.counts.attempted, summary.counts.succeeded) == (7, 6)
    counts = [shard.samples for shard in list_shards(str(tmp_path / "cache"))]
    assert counts == [shard.samples for shard in list_shards(str(tmp_path / "data"))] == [3, 3, 1]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "list.json").write_text("[]")
    with pytest.raises(InputError, match=r"no finished shard .* no tar of samples and no image"):
        list_shards(str(tmp_path))


def test_what_an_ingest_has_not_finished_is_no_data(tmp_path):
    write_by_webdataset(tmp_path)
    (tmp_path / ".ingest").mkdir()
    with pytest.raises(InputError, match="no finished shard"):
        list_shards(str(tmp_path))
