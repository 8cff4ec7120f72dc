"""A small corpus that went through the real ingest, and a teacher trained on it, made once per session."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.ingest import ingest_urls
from beamclip.commands.options import PretrainConfig, ScoringConfig
from beamclip.commands.pretrain import pretrain
from beamclip.corpus.glyphs import GlyphConfig, write_corpus, write_url_list
from beamclip.corpus.serve import serve_folder
from beamclip.data.config import StreamConfig
from beamclip.ingest.config import IngestConfig
from beamclip.summary import Summary
from beamclip.training.config import CadenceConfig, OptimConfig

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
IMAGES, TEST_IMAGES = 200, 60


@dataclass(frozen=True)
class Corpus:
    """Folders with the shards of both splits, and the class list."""

    train: Path
    test: Path
    classes: Path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, monkeypatch_session) -> Path:
    """A folder for the corpus and for runs; MLFLOW_TRACKING_URI is unset."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def monkeypatch_session():
    """A MonkeyPatch for the session; hides the tracking server of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield patch


@pytest.fixture(scope="session")
def corpus(workspace) -> Corpus:
    """The corpus, drawn, served on the loopback interface and ingested."""
    config = GlyphConfig(images=IMAGES, test_images=TEST_IMAGES, image_size=32)
    paths = write_corpus(config, workspace / "corpus")
    with serve_folder(paths.root) as address:
        for split in ("train", "test"):
            urls = write_url_list(paths.root, split, address, workspace / f"{split}.parquet")
            ingest_urls(
                IngestConfig(
                    urls=urls,
                    out=workspace / split,
                    keep_columns=("label,style",),
                    resize_mode="no",
                    image_size=None,
                    encode_format="png",
                    shard_size=50,
                    allow_private_hosts=True,
                )
            )
    return Corpus(workspace / "train", workspace / "test", paths.classes)


@pytest.fixture(scope="session")
def model_file(workspace) -> Path:
    """Config file of a model small enough to train in a test."""
    path = workspace / "model.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture(scope="session")
def teacher(corpus, model_file, workspace) -> tuple[Path, Summary]:
    """The run directory and summary of a short pre-training."""
    config = PretrainConfig(
        data=(str(corpus.train),),
        model=str(model_file),
        classes=corpus.classes,
        out=workspace / "teacher",
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=20),
        cadence=CadenceConfig(log_every=5, checkpoint_every=10),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        workers=WorkersConfig(num_workers=0),
    )
    return workspace / "teacher", pretrain(config)
