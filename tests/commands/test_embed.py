"""Caches by the public command: built, gone on with, refused, and trained from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from beamclip.cluster.config import WorkersConfig
from beamclip.commands import embed_inputs
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.distill_data import load_data
from beamclip.commands.distill_inputs import load_inputs
from beamclip.commands.distillation import reload_teacher
from beamclip.commands.embed import embed
from beamclip.commands.options import DistillConfig, EmbedConfig, ScoringConfig
from beamclip.config import read_config
from beamclip.data.cache import CacheError, embedding_column, finished_manifest, read_manifest
from beamclip.data.config import AugmentConfig, StreamConfig
from beamclip.data.listing import list_shards
from beamclip.data.shard_file import MissingShardError
from beamclip.errors import InputError
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import new_clip
from beamclip.models.config import StudentConfig
from beamclip.runs.recorder import read_history
from beamclip.training.config import CadenceConfig, OptimConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

VIEWS = 2


@pytest.fixture(scope="module")
def second_teacher(model_file, workspace) -> Path:
    write_open_clip_dir(new_clip(model_file, seed=5), workspace / "second-teacher")
    return workspace / "second-teacher"


@pytest.fixture(scope="module")
def config(teacher, second_teacher, corpus, workspace) -> EmbedConfig:
    return EmbedConfig(
        data=str(corpus.train),
        teacher=str(teacher[0]),
        more_teachers=(str(second_teacher),),
        out=str(workspace / "cache"),
        augmentations=VIEWS,
        teacher_precision="fp32",
        verify=20,
    )


@pytest.fixture(scope="module")
def cache(config):
    """The folder of a finished cache, and its summary."""
    return Path(str(config.out)), embed(config)


def distill_config(teacher, corpus, data, out, **changes) -> DistillConfig:
    """Small steps, so that rounding does not grow to a difference that means something."""
    config = DistillConfig(
        data=(str(data),),
        teacher=str(teacher[0]),
        teacher_precision="fp32",
        classes=corpus.classes,
        out=out,
        student=StudentConfig(student="test_resnet"),
        stream=StreamConfig(batch_size=20, shuffle_window=256),
        optim=OptimConfig(epochs=VIEWS, lr=1e-4, precision="fp32"),
        cadence=CadenceConfig(log_every=1),
        workers=WorkersConfig(num_workers=0),
    )
    return replace(config, **changes)


def messages(capsys, config, body) -> str:
    """What a command says to a mistake: it exits with 2 and prints no traceback."""
    assert run_command(type(config), lambda _: body(config), "", argv=[]) == 2
    return capsys.readouterr().err


def test_a_cache_holds_what_its_summary_says(cache, config, corpus):
    folder, summary = cache
    shards = list_shards(str(folder))
    assert [shard.samples for shard in shards] == [s.samples for s in list_shards(str(corpus.train))]
    manifest = read_manifest(str(folder))
    assert manifest.samples == summary.counts.attempted == sum(shard.samples for shard in shards)
    assert summary.images == VIEWS * manifest.samples
    assert summary.metrics["cosine_min"] > 0.999
    written = json.loads((folder / "summary.json").read_text())
    assert written["command"] == "embed"
    assert written["status"] == "finished"
    fitting = yaml.safe_load((folder / "distill.yaml").read_text())
    assert read_config(DistillConfig, folder / "distill.yaml").data == (fitting["data"],) == (str(folder),)


def test_training_from_a_cache_is_training_with_the_teacher(teacher, corpus, cache, workspace):
    """Over as many epochs as there are views the pixels are the same; embeddings are rounded to half."""
    folder, _ = cache
    validation = ValidationConfig(eval_every=10, val_data=str(corpus.test))
    live = distill_config(teacher, corpus, corpus.train, workspace / "live", validation=validation)
    scoring = ScoringConfig(eval_data=str(corpus.test))
    distill(live)
    summary = distill(replace(live, data=(str(folder),), out=workspace / "cached", scoring=scoring))
    for key, least in (("loss", 18), ("val_loss", 2)):
        first, second = (
            [record[key] for record in read_history(workspace / name) if key in record]
            for name in ("live", "cached")
        )
        assert len(first) == len(second) >= least
        assert second == pytest.approx(first, rel=2e-3)
    assert summary.metrics["teacher_zeroshot_top1"] == teacher[1].metrics["zeroshot_top1"]


def test_no_teacher_image_tower_is_built_for_training_from_a_cache(teacher, corpus, cache, workspace):
    config = distill_config(teacher, corpus, cache[0], workspace / "none")
    inputs = load_inputs(config, load_data(config))
    names = [name for name, _ in inputs.teachers[0].model.named_parameters()]
    assert names
    assert not [name for name in names if name.startswith("visual.")]


def test_a_cache_that_was_cut_off_is_finished_without_doing_anything_twice(config, cache, tmp_path, capsys):
    folder, _ = cache
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    lost = sorted(tmp_path.glob("*_stats.json"))[1]
    lost.unlink()
    manifest = json.loads((tmp_path / "cache.json").read_text()) | {"samples": None}
    (tmp_path / "cache.json").write_text(json.dumps(manifest))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    summary = embed(replace(config, out=str(tmp_path)))
    written = {path.name for path in tmp_path.glob("*.parquet") if path.stat().st_mtime_ns != kept[path.name]}
    assert written == {lost.name.replace("_stats.json", ".parquet")}
    assert summary.images < VIEWS * summary.counts.attempted
    for name in ("00000.parquet", "00001.parquet"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert "embedded before" in capsys.readouterr().out


def test_a_finished_cache_that_fails_its_verification_is_finished_no_more(config, cache, tmp_path):
    """By NaN, which is neither below nor above any limit."""
    shutil.copytree(cache[0], tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.parquet"):
        table = pq.read_table(file)
        place = table.schema.get_field_index(embedding_column(0, 1))
        field = table.schema.field(place)
        spoilt = pa.array([b"\xff" * field.type.byte_width] * len(table), field.type)
        pq.write_table(table.set_column(place, field, spoilt), file)
    finished_manifest(str(tmp_path))
    with pytest.raises(CacheError, match=r"[1-9]\d* of \d+ embeddings differ"):
        embed(replace(config, out=str(tmp_path)))
    with pytest.raises(InputError, match="not finished"):
        finished_manifest(str(tmp_path))


def test_a_cache_begun_with_other_options_is_not_gone_on_with(config, cache, capsys):
    changed = replace(config, seed=1, augmentation=AugmentConfig(rotate=45.0))
    said = messages(capsys, changed, embed)
    assert "seed: 0 there, 1 here" in said
    assert "rotate: 10.0 there, 45.0 here" in said


def test_an_unfinished_cache_is_not_trained_from(teacher, corpus, cache, tmp_path, capsys):
    shutil.copytree(cache[0], tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / "cache.json").read_text()) | {"samples": None}
    (tmp_path / "cache.json").write_text(json.dumps(manifest))
    wrong = distill_config(teacher, corpus, tmp_path, tmp_path / "run")
    assert "not finished" in messages(capsys, wrong, distill)


def test_a_cache_of_another_teacher(corpus, cache, model_file, teacher, tmp_path, capsys):
    write_open_clip_dir(new_clip(model_file, seed=77), tmp_path / "other")
    wrong = distill_config((tmp_path / "other", None), corpus, cache[0], tmp_path / "run")
    said = messages(capsys, wrong, distill)
    assert "holds no embeddings by" in said
    assert str(tmp_path / "other") in said
    assert str(teacher[0]) in said


def test_a_cache_of_smaller_images(teacher, corpus, cache, tmp_path, capsys):
    student = StudentConfig(student="test_resnet", student_image_size=64)
    wrong = distill_config(teacher, corpus, cache[0], tmp_path / "run", student=student)
    said = messages(capsys, wrong, distill)
    assert "32 px" in said
    assert "64 px" in said
    assert "--image-size 64" in said


def test_a_cache_of_another_augmentation(teacher, corpus, cache, tmp_path, capsys):
    changed = AugmentConfig(crop_scale_min=0.08)
    wrong = distill_config(teacher, corpus, cache[0], tmp_path / "run", augmentation=changed)
    said = messages(capsys, wrong, distill)
    assert "crop_scale_min: 0.6 there, 0.08 here" in said


def test_a_teacher_that_changed_while_the_student_trained_is_refused(teacher, corpus, cache, tmp_path):
    config = distill_config(teacher, corpus, cache[0], tmp_path / "run")
    fingerprint = read_manifest(str(cache[0])).teachers[0].fingerprint
    assert reload_teacher(config, fingerprint, tmp_path).fingerprint == fingerprint
    with pytest.raises(InputError, match=r"other weights now.*--resume .*run"):
        reload_teacher(config, "0" * 64, tmp_path / "run")


def test_all_teachers_of_a_cache_teach_together(teacher, second_teacher, corpus, cache, workspace):
    config = distill_config(
        teacher,
        corpus,
        cache[0],
        workspace / "two",
        more_teachers=(str(second_teacher),),
        optim=OptimConfig(steps=2, precision="fp32"),
    )
    alone = read_history(workspace / "cached")
    distill(config)
    together = read_history(workspace / "two")
    assert together[0]["teacher_cosine"] == pytest.approx(alone[0]["teacher_cosine"], abs=1e-5)
    assert abs(together[0]["loss"] - alone[0]["loss"]) > 1e-3


def test_damaged_images_are_counted_and_the_others_keep_their_embeddings(config, corpus, tmp_path):
    """The verification would meet embeddings that moved by a row."""
    data = tmp_path / "spoilt"
    data.mkdir()
    for file in Path(corpus.train).iterdir():
        if file.is_file():
            (data / file.name).write_bytes(file.read_bytes())
    tar = sorted(data.glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x00PNG", 3))
    summary = embed(replace(config, data=str(data), out=str(tmp_path / "cache"), verify=150))
    assert summary.counts.skipped == {"unsupported image format": 3}
    assert summary.metrics["cosine_min"] > 0.999


@pytest.mark.parametrize("decode", ["worker", "tasks"])
def test_a_shard_that_is_gone_when_it_is_read_ends_with_its_path(
    config, corpus, tmp_path, monkeypatch, decode
):
    data = tmp_path / "shards"
    shutil.copytree(corpus.train, data)
    shards = list_shards(str(data))
    monkeypatch.setattr(embed_inputs, "list_shards", lambda *_, **__: shards)
    (data / "00001.tar").unlink()
    with pytest.raises(MissingShardError, match=r"00001\.tar: cannot be read on node .*FileNotFoundError"):
        embed(replace(config, data=str(data), out=str(tmp_path / "cache"), decode=decode))


def test_what_is_missing_is_named(capsys):
    assert "--data, --teacher and --out are required." in messages(capsys, EmbedConfig(), embed)


def test_a_folder_of_plain_shards_is_not_written_into(config, corpus, capsys):
    said = messages(capsys, replace(config, out=str(corpus.train)), embed)
    assert "no teacher cache" in said
