"""Several data sets in one training: their shares in each step, resuming, teacher caches, and wrong input."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.embed import embed
from beamclip.commands.options import DistillConfig, EmbedConfig, PretrainConfig, SweepConfig
from beamclip.commands.pretrain import pretrain
from beamclip.config import read_config
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.models.config import StudentConfig
from beamclip.runs.recorder import read_history
from beamclip.sweep.sweep import sweep
from beamclip.sweep.trial import read_trials
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.trace import read_trace
from beamclip.training.worker import TrainingError

pytestmark = pytest.mark.usefixtures("ray_cluster")

HERE = WorkersConfig(num_workers=0)
SIZES = (100, 50)
BATCH, STEPS = 32, 12
FLAGS = {
    "stream": StreamConfig(batch_size=BATCH, shuffle_window=256, data_weights=(3.0, 1.0)),
    # A sample less than the batches hold.
    "optim": OptimConfig(samples=BATCH * STEPS - 1, lr=1e-4, precision="fp32"),
    "cadence": CadenceConfig(log_every=1, checkpoint_every=5, trace_samples=True),
    "workers": HERE,
}


@pytest.fixture(scope="module")
def sources(corpus, tmp_path_factory) -> tuple[Path, ...]:
    """Two folders with the shards of the corpus: two, and one."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("most", "rest"))
    for folder, shards in zip(folders, (("00000", "00001"), ("00002",)), strict=True):
        for shard in shards:
            for path in corpus.train.glob(f"{shard}*"):
                shutil.copy(path, folder)
    return folders


@pytest.fixture(scope="module")
def config(sources, model_file, workspace) -> PretrainConfig:
    data = tuple(map(str, sources))
    return PretrainConfig(data=data, model=str(model_file), out=workspace / "mixed", **FLAGS)


@pytest.fixture(scope="module")
def mixed(config):
    """A pre-training from both folders: its steps as epoch and key of each sample, and its summary."""
    summary = pretrain(config)
    return seen_in(config.out), summary


def seen_in(run: Path) -> dict[int, list[tuple[int, str]]]:
    return {
        step: [(each.epoch, each.key) for each in seen] for step, seen in read_trace(run / "trace").items()
    }


def source_of(key: str) -> int:
    """The folder that a sample is in: its key begins with the number of its shard."""
    return int(key[:5] == "00002")


def test_each_step_has_the_data_sets_in_their_shares(mixed):
    steps, summary = mixed
    assert sorted(steps) == list(range(1, STEPS + 1))
    for seen in steps.values():
        assert Counter(source_of(key) for _, key in seen) == {0: 24, 1: 8}
    assert summary.counts.attempted == summary.counts.succeeded == sum(SIZES)
    assert summary.images == STEPS * BATCH


def test_each_epoch_of_a_data_set_has_each_of_its_samples_once(mixed):
    seen = [sample for step in mixed[0].values() for sample in step]
    for source, size in enumerate(SIZES):
        epochs = Counter(epoch for epoch, key in seen if source_of(key) == source)
        total = STEPS * (24, 8)[source]
        assert [epochs[epoch] for epoch in range(total // size)] == [size] * (total // size)
        assert epochs[total // size] == total % size
    assert max(Counter(seen).values()) == 1


def test_the_run_records_all_data_sets_and_says_their_shares(config, mixed, capsys, tmp_path):
    content = yaml.safe_load((config.out / "config.yaml").read_text())
    assert content["data"] == list(config.data)
    assert content["stream"]["data_weights"] == [3.0, 1.0]
    pretrain(replace(config, out=tmp_path / "run", optim=OptimConfig(steps=1)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("source")]
    for line, address, text in zip(
        lines, config.data, ("100 samples, 75.0 % of each batch", "50 samples, 25.0 % of each"), strict=True
    ):
        assert address in line
        assert text in line
    assert [line.split()[-2:] for line in lines] == [["0.24", "passes"], ["0.16", "passes"]]


def test_a_resumed_run_of_another_command_and_more_workers_goes_on_exactly(
    teacher, corpus, sources, mixed, workspace
):
    """Order follows from data, weights, window and seed: a distillation has that of the pre-training."""
    config = DistillConfig(
        data=tuple(map(str, sources)),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        student=StudentConfig(student="test_resnet"),
        out=workspace / "mixed-student",
        **FLAGS,
    )
    distill(replace(config, optim=replace(config.optim, samples=7 * BATCH)))
    assert seen_in(config.out) == {step: mixed[0][step] for step in range(1, 8)}
    resumed = replace(config, resume=str(config.out), workers=WorkersConfig(num_workers=2, max_failures=0))
    distill(resumed)
    assert seen_in(config.out) == mixed[0]
    longer = replace(resumed, workers=HERE, optim=OptimConfig(steps=2 * STEPS))
    equal = replace(config.stream, data_weights=(1.0, 1.0))
    with pytest.raises(TrainingError, match="Resume it with --data-weights 12 4, --shuffle-window 256 and"):
        distill(replace(longer, stream=equal))
    without = replace(config.stream, data_weights=())
    with pytest.raises(InputError, match="its checkpoint was made with other data"):
        distill(replace(longer, data=config.data[:1], stream=without))


def test_without_weights_an_epoch_has_each_sample_of_all_data_sets_once(config, tmp_path):
    stream = StreamConfig(batch_size=30, shuffle_window=256)
    pretrain(replace(config, out=tmp_path / "run", stream=stream, optim=OptimConfig(epochs=2)))
    seen = [sample for step in seen_in(tmp_path / "run").values() for sample in step]
    assert Counter(epoch for epoch, _ in seen) == {0: sum(SIZES), 1: sum(SIZES)}
    assert max(Counter(seen).values()) == 1


@pytest.fixture(scope="module")
def caches(teacher, sources, workspace) -> tuple[str, ...]:
    """A teacher cache of each folder; of two views and of three."""
    config = EmbedConfig(teacher=str(teacher[0]), teacher_precision="fp32", captions=False, verify=5)
    made = tuple(str(workspace / f"cache-of-{source.name}") for source in sources)
    for views, (source, out) in enumerate(zip(sources, made, strict=True), 2):
        embed(replace(config, data=str(source), out=out, augmentations=views))
    return made


def test_two_caches_train_as_the_data_that_they_were_made_from(teacher, corpus, sources, caches, workspace):
    live = DistillConfig(
        data=tuple(map(str, sources)),
        teacher=str(teacher[0]),
        teacher_precision="fp32",
        classes=corpus.classes,
        student=StudentConfig(student="test_resnet"),
        out=workspace / "mixed-live",
        **FLAGS
        # 180 samples of the first folder and 140 of the second: within two epochs, and within three.
        | {
            "stream": replace(FLAGS["stream"], data_weights=(9.0, 7.0)),
            "optim": OptimConfig(steps=10, lr=1e-4, precision="fp32"),
        },
    )
    distill(live)
    distill(replace(live, data=caches, out=workspace / "mixed-cached"))
    runs = (workspace / name for name in ("mixed-live", "mixed-cached"))
    first, second = ([record["loss"] for record in read_history(run)] for run in runs)
    assert len(first) == 10
    assert second == pytest.approx(first, rel=2e-3)


def refused(capsys, command, *words) -> str:
    options = {pretrain: PretrainConfig, distill: DistillConfig}[command]
    assert run_command(options, command, "", [str(word) for word in words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data-weights", 1, 2, 3), "--data-weights 1 2 3: 3 weights for 2 data sets. Give one for each"),
        (("--data-weights", 1, 0), "data_weights is 0.0: give a number above 0"),
        (("--data-weights", 1, -2), "data_weights is -2.0: give a number above 0"),
        (("--data-weights", 1, "nan"), "data_weights is nan"),
        (("--data-weights", 1000, 1), "--data-weights 1: is less than one of the 256 lanes"),
        (("--num-workers", 64), "--shuffle-window 4096: has 256 lanes of 16 samples, too few for 64 workers"),
        (("--steps", 3, "--samples", 9), "steps is 3 and samples 9: give one of them"),
    ],
)
def test_wrong_weights_and_lengths_are_refused_in_a_line(sources, capsys, tmp_path, words, message):
    given = ("--data", *sources, "--batch-size", 64, "--out", tmp_path / "run", *words)
    assert message in refused(capsys, pretrain, *given)


def test_a_data_set_given_twice_is_refused(sources, capsys, tmp_path):
    again = f"{sources[0]}/../{sources[0].name}/"
    said = refused(capsys, pretrain, "--data", sources[0], sources[1], again, "--out", tmp_path / "run")
    assert f"--data {again}: given twice" in said


def test_one_of_several_data_sets_that_is_not_there_is_named(sources, capsys, tmp_path):
    said = refused(capsys, pretrain, "--data", sources[0], tmp_path / "no", "--out", tmp_path / "run")
    assert f"{tmp_path / 'no'}: no such folder" in said


def test_every_data_set_must_have_captions_where_they_are_needed(teacher, sources, capsys, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    data = ("--data", sources[0], tmp_path / "images", "--batch-size", 16, "--out", tmp_path / "run")
    words = f"{tmp_path / 'images'}: none of the first 4 samples"
    assert words in refused(capsys, pretrain, *data)
    given = ("--teacher", teacher[0], "--anchors", "captions", "--context-source", "captions")
    assert words in refused(capsys, distill, *data, *given, "--num-contexts", 1)


def test_caches_that_do_not_fit_together_are_refused(teacher, corpus, sources, caches, capsys, tmp_path):
    given = ("--teacher", teacher[0], "--classes", corpus.classes, "--student", "test_resnet")
    out = ("--out", tmp_path / "run", "--num-workers", 0)
    said = refused(capsys, distill, "--data", caches[0], sources[1], *given, *out)
    assert f"--data: {caches[0]} is a teacher cache and {sources[1]} is none" in said
    other = tmp_path / "other"
    for change, message in (
        ('"image_size": 32', f"--data: {caches[0]} was made from images of 32 px, and {other} of 48"),
        ('"rotate": 10.0', f"{other}: was made with another augmentation: rotate: 48 there"),
        ('"fingerprint": "', f"{other}: holds no embeddings by {teacher[0]}"),
    ):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(caches[1], other)
        text = (other / "cache.json").read_text()
        assert change in text
        changed = f"{change}0" if change.endswith('"') else f"{change.split(':')[0]}: 48"
        (other / "cache.json").write_text(text.replace(change, changed))
        assert message in refused(capsys, distill, "--data", caches[0], other, *given, *out)


@pytest.mark.slow
def test_a_sweep_builds_a_cache_of_each_data_set(teacher, corpus, sources, capsys, tmp_path):
    given = ("--data", *sources, "--data-weights", 3, 1, "--teacher", teacher[0], "--classes", corpus.classes)
    options = ("--eval-data", corpus.test, "--student", "test_resnet", "--batch-size", 32, "--samples", 96)
    search = ("--augmentations", 1, "--scores", 1, "--vary", "lr=1e-3", "--out", tmp_path / "run")
    assert run_command(SweepConfig, sweep, "", [str(word) for word in (*given, *options, *search)]) == 0
    best = read_config(DistillConfig, tmp_path / "run" / "best.yaml")
    folders = [f"{number}-{source.name}" for number, source in enumerate(sources)]
    assert best.data == tuple(str(tmp_path / "run" / "cache" / folder) for folder in folders)
    assert best.stream.data_weights == (3.0, 1.0)
    (trial,) = read_trials(tmp_path / "run").values()
    assert (trial.status, trial.steps) == ("finished", 3)
    assert "75.0 % of each batch" in capsys.readouterr().out
