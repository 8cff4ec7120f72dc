"""Scores during training against sums by hand, and the images that they are computed from."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from PIL import Image
from torch import Tensor

from beamclip.data.config import Augmentation
from beamclip.errors import InputError
from beamclip.evaluation.held_out import read_held_out
from beamclip.evaluation.validation import ClassTexts, Scorer, ValidationSet, neighbour_accuracy
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.prompts.anchors import Anchors
from beamclip.training.distillation import Distillation
from beamclip.training.pretraining import ImageTextPretraining

STRONG = Augmentation(flip_prob=1.0, jitter=0.9)
CPU = torch.device("cpu")
PROMPTS = [["a crab", "crab"], ["an arrow"], ["a heart"]]


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    return new_clip("nano-resnet10t", seed=1)


def units(count: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def embedded(clip: LoadedClip, pixels: np.ndarray) -> Tensor:
    """Embeddings by open_clip's own formula."""
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (clip.preprocessing.mean, clip.preprocessing.std)
    )
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0 - mean) / std
    with torch.no_grad():
        return clip.model.eval().encode_image(scaled, normalize=True)


@torch.no_grad()
def scores(method: torch.nn.Module, held_out: ValidationSet, batch_size: int = 64) -> dict[str, float]:
    return Scorer(held_out, CPU, batch_size=batch_size, chunk_size=4)(method.eval())


def test_a_distillation_is_scored_by_its_anchors_and_its_own_loss(clip: LoadedClip) -> None:
    pixels, labels = images(10, clip.image_size), np.arange(10) % 3
    anchors, of_teacher = units(3, clip.embed_dim), units(10, clip.embed_dim, seed=1)
    method = Distillation(
        clip.image_tower,
        [],
        [Anchors(anchors, torch.arange(3))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(feature_weight=0.5),
        augmentation=STRONG,
    )
    held_out = ValidationSet(pixels, labels, Anchors(anchors, torch.arange(3)), 3, embeddings=(of_teacher,))
    got = scores(method, held_out, batch_size=4)
    own = embedded(clip, pixels)
    assert got["val_zeroshot_top1"] == np.mean((own @ anchors.T).argmax(dim=1).numpy() == labels)
    p_teacher, p_student = ((x @ anchors.T / t).softmax(dim=1) for x, t in ((of_teacher, 0.1), (own, 0.2)))
    divergence = (p_teacher * (p_teacher / p_student).log()).sum(dim=1).mean()
    cosine = (own * of_teacher).sum(dim=1).mean()
    assert got["val_loss"] == pytest.approx(float(divergence + 0.5 * (1 - cosine)), rel=1e-4)


def test_a_pretraining_is_scored_by_its_text_tower_and_its_own_loss(clip: LoadedClip) -> None:
    pixels, labels = images(10, clip.image_size), np.arange(10) % 3
    captions = tuple(f"thing number {number}" for number in range(10))
    method = ImageTextPretraining(clip, augmentation=STRONG)
    got = scores(
        method, ValidationSet(pixels, labels, ClassTexts(PROMPTS, "mean"), 3, captions), batch_size=5
    )
    own = embedded(clip, pixels)
    with torch.no_grad():
        texts, of_captions = (
            clip.model.encode_text(clip.tokenizer(list(each)), normalize=True)
            for each in (["a crab", "crab", "an arrow", "a heart"], captions)
        )
        scale = clip.model.logit_scale.exp()
        halves = [ClipLoss()(own[half], of_captions[half], scale) for half in (slice(5), slice(5, 10))]
    anchors = torch.stack([F.normalize(texts[:2].sum(dim=0), dim=0), texts[2], texts[3]])
    assert got["val_zeroshot_top1"] == np.mean((own @ anchors.T).argmax(dim=1).numpy() == labels)
    assert got["val_loss"] == pytest.approx(float(sum(halves)) / 2, rel=1e-4)


def test_an_image_without_a_caption_takes_no_part_in_the_loss(clip: LoadedClip) -> None:
    pixels, captions = images(6, clip.image_size), ("one", "two", "", "four", "", "six")
    method, texts = ImageTextPretraining(clip, augmentation=STRONG), ClassTexts(PROMPTS, "mean")
    labels, kept = np.zeros(6, np.int64), [0, 1, 3, 5]
    whole = scores(method, ValidationSet(pixels, labels, texts, 3, captions))
    some = ValidationSet(pixels[kept], labels[kept], texts, 3, tuple(captions[place] for place in kept))
    assert whole["val_loss"] == pytest.approx(scores(method, some)["val_loss"], rel=1e-5)
    assert "val_loss" not in scores(method, ValidationSet(pixels, labels, texts, 3))


def test_a_loss_that_is_asked_for_leaves_a_large_scale_as_it_is(clip: LoadedClip) -> None:
    method = ImageTextPretraining(clip, augmentation=STRONG)
    before = clip.model.logit_scale.detach().clone()
    clip.model.logit_scale.data.fill_(9.0)
    texts, captions = ClassTexts(PROMPTS, "mean"), ("one", "two", "three")
    scores(method, ValidationSet(images(3, clip.image_size), np.arange(3), texts, 3, captions))
    assert clip.model.logit_scale.item() == 9.0
    clip.model.logit_scale.data.copy_(before)


def test_neighbours_vote_among_the_other_images_as_in_a_loop() -> None:
    embeddings, labels = units(40, 3), torch.arange(40) % 5
    labels[0] = 5
    right = []
    for own in range(1, 40):
        cosines = {other: float(embeddings[own] @ embeddings[other]) for other in range(40) if other != own}
        votes = dict.fromkeys(range(6), 0.0)
        for other in sorted(cosines, key=lambda other: -cosines[other])[:10]:
            votes[int(labels[other])] += math.exp(cosines[other] / 0.07)
        right.append(max(votes, key=lambda label: votes[label]) == int(labels[own]))
    # The image of class 5 has no other of its class, so it votes and is not scored.
    assert neighbour_accuracy(embeddings, labels, 6) == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1


def test_embeddings_that_are_not_finite_are_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = units(30, 8), torch.arange(30) % 3
    monkeypatch.setattr("beamclip.evaluation.validation.CHUNK_ELEMENTS", 90)
    embeddings[4] = torch.nan
    rest = torch.arange(30) != 4
    right = neighbour_accuracy(embeddings[rest], labels[rest], 3)
    assert right is not None
    assert neighbour_accuracy(embeddings, labels, 3) == pytest.approx(right * 29 / 30)
    assert neighbour_accuracy(torch.full((30, 8), torch.nan), labels, 3) == 0.0


def test_neighbours_say_nothing_where_most_classes_have_one_image() -> None:
    assert neighbour_accuracy(units(9, 4), torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 6]), 7) is None
    assert neighbour_accuracy(units(1, 4), torch.tensor([0]), 1) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of 30 plain images, of which one file is no image; a caption beside each of one."""
    root = tmp_path_factory.mktemp("labelled")
    for place, name in enumerate(("crab", "heart")):
        (root / name).mkdir()
        for number in range(15):
            image = Image.new("RGB", (40, 30), (number * 10, place * 100, 0))
            image.save(root / name / f"{number:02d}.png")
    (root / "crab" / "07.png").write_bytes(b"no image")
    return root


def test_images_to_validate_on_lie_at_even_distances(folder: Path, clip: LoadedClip) -> None:
    found = read_held_out(str(folder), ["heart", "crab"], "label", 10, clip)
    # Every third of thirty, from the second one on; the eighth of the first class is damaged.
    assert [int(image[0, 0, 0]) // 10 for image in found.images] == [1, 4, 10, 13, 1, 4, 7, 10, 13]
    assert found.labels.tolist() == [1] * 4 + [0] * 5
    assert found.images.shape[1:] == (clip.image_size, clip.image_size, 3)
    assert sum(found.skipped.values()) == 1
    again = found.pixels(clip).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(again, found.images)


def test_images_of_other_classes_are_counted_and_none_at_all_is_an_error(
    folder: Path, clip: LoadedClip
) -> None:
    found = read_held_out(str(folder), ["heart"], "label", 100, clip)
    assert found.skipped["label not in the class list"] == 14
    assert len(found.labels) == 15
    with pytest.raises(InputError, match=r"no image to validate on; .*Found: crab, heart; the list has bird"):
        read_held_out(str(folder), ["bird"], "label", 100, clip)
