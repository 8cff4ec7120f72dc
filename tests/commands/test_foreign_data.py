"""Data that beamclip did not write: each is trained on by one command, and counted exactly."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.distill import distill
from beamclip.commands.embed import embed
from beamclip.commands.evaluate import evaluate
from beamclip.commands.options import DistillConfig, EmbedConfig, EvaluateConfig, PretrainConfig
from beamclip.commands.pretrain import pretrain
from beamclip.data.config import StreamConfig
from beamclip.data.image_folder import NO_IMAGE_BESIDE, NOT_DESCRIBED
from beamclip.data.listing import list_shards
from beamclip.data.shards import MISSING_CAPTION, Columns, iterate_rows
from beamclip.errors import InputError
from beamclip.evaluation.encode import UNKNOWN_LABEL
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


def write_texts_beside(folder: Path) -> None:
    for number in range(IMAGES):
        (folder / f"{number:03d}.png").write_bytes(png(number))
        (folder / f"{number:03d}.txt").write_text(f"picture {number}")


def write_imagefolder(folder: Path) -> None:
    """As Hugging Face datasets lay out a split."""
    (folder / "images").mkdir()
    lines = ["file_name,text,label"]
    for number in range(IMAGES):
        (folder / "images" / f"{number:03d}.png").write_bytes(png(number))
        lines.append(f"images/{number:03d}.png,picture {number},{number % 3}")
    (folder / "metadata.csv").write_text("\n".join(lines))


def write_datasets_parquet(folder: Path) -> None:
    """As Hugging Face datasets write their files."""
    for part in range(2):
        numbers = range(part, IMAGES, 2)
        images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
        texts, labels = [f"picture {number}" for number in numbers], [number % 3 for number in numbers]
        table = pa.table({"image": images, "text": texts, "label": labels})
        pq.write_table(table, folder / f"train-{part:05d}-of-00002.parquet", row_group_size=8)


CAPTIONED = [write_texts_beside, write_imagefolder, write_datasets_parquet]


@pytest.mark.parametrize(
    "write", [write_by_webdataset, write_by_tar, write_images, write_class_folders, write_imagefolder]
)
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


@pytest.mark.parametrize("write", CAPTIONED)
def test_a_teacher_is_trained_on_each_caption_of_it_and_what_has_none_is_counted(model_file, tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    lost = {}
    if write is not write_datasets_parquet:
        (data / "README.txt").write_text("forty-one pictures")
        (data / "bare.png").write_bytes(png(0))
        nowhere = MISSING_CAPTION if write is write_texts_beside else NOT_DESCRIBED
        lost = {NO_IMAGE_BESIDE: 1, nowhere: 1}
    config = PretrainConfig(
        data=(str(data),),
        model=str(model_file),
        out=tmp_path / "run",
        stream=StreamConfig(batch_size=IMAGES + sum(lost.values())),
        optim=OptimConfig(steps=1),
        cadence=CadenceConfig(log_every=1),
        workers=WorkersConfig(num_workers=0),
    )
    counts = pretrain(config).counts
    assert (counts.attempted, counts.succeeded) == (IMAGES + sum(lost.values()), IMAGES)
    assert counts.skipped == lost


@pytest.mark.parametrize("write", [write_imagefolder, write_datasets_parquet])
def test_a_model_is_scored_by_the_labels_of_it(teacher, tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    (tmp_path / "classes.yaml").write_text("[{id: '0', name: cross}, {id: '1', name: bar}]")
    config = EvaluateConfig(
        model=str(teacher[0]),
        data=(str(data),),
        classes=tmp_path / "classes.yaml",
        out=tmp_path / "scores",
        workers=WorkersConfig(num_workers=0),
    )
    counts = evaluate(config).counts
    unknown = sum(number % 3 == 2 for number in range(IMAGES))
    assert (counts.attempted, counts.succeeded) == (IMAGES, IMAGES - unknown)
    assert counts.skipped == {UNKNOWN_LABEL: unknown}


def test_captions_and_labels_of_a_folder_are_kept_in_its_cache(ray_cluster, teacher, tmp_path):
    (tmp_path / "data").mkdir()
    write_imagefolder(tmp_path / "data")
    (tmp_path / "data" / "images" / "bare.png").write_bytes(png(0))
    config = EmbedConfig(data=str(tmp_path / "data"), teacher=str(teacher[0]), out=str(tmp_path / "cache"))
    summary = embed(replace(config, augmentations=1))
    assert (summary.counts.attempted, summary.counts.succeeded) == (IMAGES + 1, IMAGES)
    (shard,) = list_shards(str(tmp_path / "cache"))
    rows = [*iterate_rows(shard, Columns(caption=True, label="label"), range(IMAGES + 1))]
    assert [(row["caption"], row["label"]) for row in rows[:2]] == [("picture 0", "0"), ("picture 1", "1")]
    assert rows[-1]["problem"] == NOT_DESCRIBED


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
    with pytest.raises(InputError, match=r"no finished shard .* no tar of samples, .* and no image"):
        list_shards(str(tmp_path))


def test_what_an_ingest_has_not_finished_is_no_data(tmp_path):
    write_by_webdataset(tmp_path)
    (tmp_path / ".ingest").mkdir()
    with pytest.raises(InputError, match="no finished shard"):
        list_shards(str(tmp_path))
