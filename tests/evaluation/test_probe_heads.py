"""Classifiers side by side against one that is trained alone, and the probe by streaming on real shards."""

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from beamclip.cluster.config import WorkersConfig
from beamclip.data.image_limits import UNSUPPORTED_FORMAT
from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, iterate_rows
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.encode import EncodeSpec, encode_labelled
from beamclip.evaluation.probe_heads import LinearHeads
from beamclip.evaluation.probe_stream import _shuffled, train_by_stream
from beamclip.models.clip import LoadedClip, new_clip

WIDTH, CLASSES, BATCH, STEPS = 6, 4, 32, 20


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(CLASSES, WIDTH, generator=generator)
    found = []
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        found.append((5 + 40 * (centres[labels] + torch.randn(BATCH, WIDTH, generator=generator)), labels))
    return found


def test_each_classifier_trains_as_it_would_alone() -> None:
    lrs = (0.1, 1.0)
    heads = LinearHeads(WIDTH, CLASSES, lrs, batch_size=BATCH)
    alone = nn.Linear(WIDTH, CLASSES)
    alone.load_state_dict(heads.heads[1].state_dict())
    optimizer = torch.optim.SGD(alone.parameters(), lr=1.0, momentum=0.9)
    for step, (features, labels) in enumerate(batches()):
        heads.step(features, labels, step / STEPS)
        optimizer.param_groups[0]["lr"] = BATCH / 256 * (1 + math.cos(math.pi * step / STEPS)) / 2
        normed = F.batch_norm(features, None, None, training=True)
        optimizer.zero_grad()
        F.cross_entropy(alone(normed), labels).backward()
        optimizer.step()
    torch.testing.assert_close(heads.heads[1].weight, alone.weight)
    assert not torch.allclose(heads.heads[0].weight, alone.weight)
    accuracies = heads.accuracies(*batches()[0])
    assert max(accuracies) > 0.9


def test_a_classifier_that_has_diverged_finds_nothing() -> None:
    heads = LinearHeads(WIDTH, CLASSES, (0.1, 0.2), batch_size=BATCH)
    with torch.no_grad():
        heads.heads[0].weight.fill_(torch.nan)
    assert heads.accuracies(*batches()[0])[0] == 0.0


@pytest.mark.parametrize(
    ("batch", "usable", "steps"), [(256, 1.0, 78), (3000, 1.0, 6), (256, 0.01, 1), (20_001, 1.0, 1)]
)
def test_all_steps_of_an_epoch_are_whole_and_spread_over_its_rows(
    batch: int, usable: float, steps: int
) -> None:
    """20,000 rows, 100 at a time, of which only some have a label in the class list."""
    number = int(100 * usable)
    rows = (
        (torch.arange(number)[:, None] + 100.0 * part, torch.arange(number), (part + 1) / 200)
        for part in range(200)
    )
    config = ProbeConfig(probe_batch=batch)
    made = list(_shuffled(rows, config, epoch=0))
    assert len(made) == steps
    assert {len(labels) for _, labels, _ in made} == {min(batch, int(20_000 * usable))}
    done = [before for _, _, before in made]
    assert done == pytest.approx([step / steps for step in range(steps)], abs=0.16)
    assert done == sorted(done)
    seen = torch.cat([features for features, _, _ in made]).flatten().tolist()
    assert len(set(seen)) == len(seen)
    assert len(seen) > 20_000 * usable - batch


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LoadedClip:
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 1},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("configs") / "micro.json"
    path.write_text(json.dumps(config))
    return new_clip(path, seed=0)


def write_shards(folder: Path, number: int) -> None:
    """Images of two classes, sorted: a shard of dark ones, a shard of bright ones; one is damaged."""
    for shard, level in enumerate((60, 190)):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(number):
                noise = np.random.default_rng((shard, i)).integers(-50, 50, (40, 40, 3))
                picture = io.BytesIO()
                Image.fromarray((level + noise).astype(np.uint8)).save(picture, "PNG")
                content = b"no image" if (shard, i) == (0, 6) else picture.getvalue()
                fields = json.dumps({"label": ("dark", "bright")[shard]}).encode()
                for suffix, data in (("json", fields), ("png", content)):
                    member = tarfile.TarInfo(f"{shard}{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def test_the_held_out_images_of_shards_of_one_file_are_not_trained_on(
    clip: LoadedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shards of a data set of torchvision have one path; their rows are told apart all the same."""
    monkeypatch.setattr("beamclip.data.listing.ROWS_PER_SHARD", 10)
    probe = train_by_stream(
        clip,
        "torchvision:FakeData?size=40&num_classes=3",
        ["0", "1", "2"],
        "label",
        ProbeConfig(probe="ssl", probe_epochs=1, probe_lrs=(0.1,)),
        EncodeSpec(batch_size=32),
        WorkersConfig(num_workers=0),
        device="cpu",
        show=lambda *_: None,
    )
    shards = list_labelled("torchvision:FakeData?size=40&num_classes=3")
    assert len({shard.path for shard in shards}) == 1
    labels = [
        int(row["label"])
        for shard in shards
        for row in iterate_rows(shard, Columns(label="label"), range(shard.samples))
    ]
    kept = [label for number, label in enumerate(labels) if number not in (5, 15, 25, 35)]
    assert probe.class_images.tolist() == np.bincount(kept, minlength=3).tolist()


def test_without_two_usable_images_there_is_no_probe(clip: LoadedClip, tmp_path: Path) -> None:
    write_shards(tmp_path, 10)
    config = ProbeConfig(probe="ssl", probe_epochs=1, probe_lrs=(0.1,))
    arguments = (clip, str(tmp_path), ["grey"], "label", config, EncodeSpec(), WorkersConfig(num_workers=0))
    with pytest.raises(InputError, match="no image to score"):
        train_by_stream(*arguments, device="cpu", show=lambda *_: None)


def test_a_probe_is_trained_by_streaming_and_scored_on_whole_images(clip: LoadedClip, tmp_path: Path) -> None:
    write_shards(tmp_path, 40)
    classes, here = ["dark", "bright"], WorkersConfig(num_workers=0)
    config = ProbeConfig(probe="ssl", probe_epochs=3, probe_lrs=(1e-4, 0.3), probe_batch=16)
    seen: list[int] = []

    def trained() -> Tensor:
        probe = train_by_stream(
            clip,
            str(tmp_path),
            classes,
            "label",
            config,
            EncodeSpec(batch_size=32),
            here,
            device="cpu",
            show=lambda done, _: seen.append(done),
        )
        # Of 80 images, eight are held out, one of the others is damaged.
        assert probe.class_images.tolist() == [35, 36]
        assert probe.train_images == 71
        assert probe.skipped == {UNSUPPORTED_FORMAT: 1}
        assert len(probe.accuracies) == 2
        return probe.ranks(encoded.features, encoded.labels)

    encoded = encode_labelled(clip, str(tmp_path), classes, "label", EncodeSpec(False, True), here)
    ranks = trained()
    assert len(ranks) == 79
    assert (ranks == 0).float().mean() > 0.95
    assert seen == [1, 2, 3]
    assert trained().tolist() == ranks.tolist()
