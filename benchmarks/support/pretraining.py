"""Pre-train a model of a study: our method and training step, in this process, on pairs in memory."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from support.emoji_pairs import Pairs, encode_pairs, endless_batches

from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.worker_stream import prefetched
from beamclip.evaluation.retrieval import retrieval_metrics
from beamclip.evaluation.zeroshot import topk_accuracy
from beamclip.losses.config import Objective, PsdConfig
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.training.config import OptimConfig
from beamclip.training.loop import Training
from beamclip.training.pretraining import ImageTextPretraining, initial_logits


@dataclass(frozen=True)
class Recipe:
    """Settings of a pre-training run, without its data and its seed."""

    model: str
    objective: Objective = "clip"
    psd: PsdConfig = field(default_factory=PsdConfig)
    batch_size: int = 128
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=16, lr=1e-3))
    augmentation: Augmentation = field(default_factory=Augmentation)
    model_changes: dict[str, Any] = field(default_factory=dict)
    """Top-level values that replace those of the model config."""


def build(recipe: Recipe, seed: int, total_steps: int) -> tuple[LoadedClip, Training]:
    """Build a new model and its training, before the first step."""
    torch.manual_seed(seed)
    changes = {**initial_logits(recipe.objective), **recipe.model_changes}
    clip = new_clip(recipe.model, seed, **changes)
    method = ImageTextPretraining(
        clip, augmentation=recipe.augmentation, objective=recipe.objective, psd=recipe.psd, seed=seed
    )
    method.to(memory_format=torch.channels_last).train()
    device = torch.device("cpu")
    return clip, Training(method, recipe.optim, total_steps=total_steps, device=device, seed=seed)


def train(recipe: Recipe, pairs: Pairs, seed: int) -> tuple[LoadedClip, dict[str, Any]]:
    """Train to the end.

    Returns:
        The model, and figures: `images_per_second`, `data_wait_share`, `steps`, and under `last_epoch` the
        mean metrics of the last epoch.
    """
    steps_per_epoch = len(pairs.keys) // recipe.batch_size
    total = recipe.optim.steps or round(recipe.optim.epochs * steps_per_epoch)
    clip, training = build(recipe, seed, total)
    decoding = Decoding(clip.image_size, recipe.augmentation, CaptionConfig(), seed)
    began, waited, sums = time.perf_counter(), 0.0, dict[str, float]()
    with prefetched(endless_batches(pairs, recipe.batch_size, decoding), 4) as batches:
        while training.step < total:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            _, metrics = training.advance([batch])
            if training.step > total - steps_per_epoch:
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / steps_per_epoch
    seconds = time.perf_counter() - began
    clip.model.eval()
    speed = {"images_per_second": total * recipe.batch_size / seconds, "data_wait_share": waited / seconds}
    return clip, {**speed, "steps": total, "last_epoch": sums}


def score(clip: LoadedClip, test: Pairs, names: list[str]) -> dict[str, float]:
    """Score zero-shot over all names, retrieval over the test pairs, and the gap between the modalities."""
    images, anchors = encode_pairs(clip, test, names)
    labels = torch.tensor(test.labels)
    accuracy = topk_accuracy(images @ anchors.T, labels)
    own = anchors[labels]
    gap = (images.mean(dim=0) - own.mean(dim=0)).norm()
    return {
        "zeroshot_top1": accuracy[1],
        "zeroshot_top5": accuracy[5],
        **retrieval_metrics(images, own, torch.arange(len(images)), ks=(1,)),
        "modality_gap": float(gap),
        "pair_cosine": float(F.cosine_similarity(images, own).mean()),
    }
