"""A CLIP small enough to be built in each test."""

import json
from pathlib import Path
from typing import Any

import pytest

from beamclip.models.clip import LoadedClip, new_clip

MICRO: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def micro_config() -> dict[str, Any]:
    """A copy of the micro config that a test may change."""
    return json.loads(json.dumps(MICRO))


@pytest.fixture(scope="session")
def micro_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro config as a JSON file."""
    file = tmp_path_factory.mktemp("configs") / "micro.json"
    file.write_text(json.dumps(MICRO))
    return file


@pytest.fixture
def micro_clip(micro_file: Path) -> LoadedClip:
    """A new CLIP of the micro config, with seeded random weights."""
    return new_clip(micro_file, seed=0)
