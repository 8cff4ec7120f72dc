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
from beamclip.evaluation.config import ProbeConfig
from beamclip.evaluation.encode import EncodeSpec, encode_labelled
from beamclip.evaluation.probe_heads import LinearHeads
from beamclip.evaluation.probe_stream import train_by_stream
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
    heads = LinearHeads(WIDTH, CLASSES, lrs, batch_size=BATCH, steps=STEPS)
    alone = nn.Linear(WIDTH, CLASSES)
    alone.load_state_dict(heads.heads[1].state_dict())
    optimizer = torch.optim.SGD(alone.parameters(), lr=1.0, momentum=0.9)
    for step, (features, labels) in enumerate(batches()):
        heads.step(features, labels)
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
    heads = LinearHeads(WIDTH, CLASSES, (0.1, 0.2), batch_size=BATCH, steps=STEPS)
    with torch.no_grad():
        heads.heads[0].weight.fill_(torch.nan)
    assert heads.accuracies(*batches()[0])[0] == 0.0


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
                content = b"no image" if (shard, i) == (0, 5) else picture.getvalue()
                fields = json.dumps({"label": ("dark", "bright")[shard]}).encode()
                for suffix, data in (("json", fields), ("png", content)):
                    member = tarfile.TarInfo(f"{shard}{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


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
        assert probe.train_images == 72
        assert len(probe.accuracies) == 2
        return probe.ranks(encoded.features, encoded.labels)

    encoded = encode_labelled(clip, str(tmp_path), classes, "label", EncodeSpec(False, True), here)
    ranks = trained()
    assert len(ranks) == 79
    assert (ranks == 0).float().mean() > 0.95
    assert seen == [1, 2, 3]
    assert trained().tolist() == ranks.tolist()
