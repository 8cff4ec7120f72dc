"""The methods against their losses, over one and two workers, and what they must leave alone."""

import copy
import json
import math
import os
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batches import all_good, averaged
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

import beamclip
from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import AUGMENT_DRAWS, augment
from beamclip.losses.batch_terms import icl_loss, relation_loss
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig, PsdConfig, VisionConfig
from beamclip.models.clip import LoadedClip, new_clip, normalise_pixels
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training
from beamclip.training.pretraining import ImageTextPretraining

WORKER = Path(__file__).with_name("data_parallel_worker.py")
SOURCES = Path(beamclip.__file__).parents[1]
PLAIN = Augmentation(rotate=0.0, translate=0.0, zoom=0.0, jitter=0.0)


def photos(count: int, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    draws = torch.rand(count, AUGMENT_DRAWS, generator=generator)
    keys = [f"{i:04d}" for i in range(count)]
    captions = [f"a photo of thing number {key}" for key in keys]
    return Batch(pixels, draws, captions, **all_good(count), keys=keys, epochs=[0] * count)


def random_anchors(count: int, width: int) -> Anchors:
    embeddings = torch.randn(count, width, generator=torch.Generator().manual_seed(2))
    return Anchors(F.normalize(embeddings, dim=1), torch.arange(count))


def distill(
    student: LoadedClip, embed: Callable[[Tensor], Tensor], augmentation: Augmentation = PLAIN
) -> Distillation:
    return Distillation(
        student.image_tower,
        [embed],
        [random_anchors(6, student.embed_dim)],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2, csm_weight=3.0),
        feature=FeatureConfig(feature_weight=0.5),
        augmentation=augmentation,
    )


def test_distillation_is_the_weighted_sum_of_divergence_and_cosine_distance(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), new_clip(tiny_config, seed=0)
    batch = averaged(photos(5))
    loss, metrics = distill(student, Teacher(teacher).encode_image)(batch)
    with torch.no_grad():
        s, t = (
            F.normalize(clip.model.encode_image(normalise_pixels(batch.pixels, clip.preprocessing)), dim=1)
            for clip in (student, teacher)
        )
    anchors = random_anchors(6, 16).embeddings
    p_teacher, p_student = (t @ anchors.T / 0.1).softmax(dim=1), (s @ anchors.T / 0.2).softmax(dim=1)
    divergence = (p_teacher * (p_teacher / p_student).log()).sum(dim=1).mean()
    cosine = F.cosine_similarity(s, t).mean()
    torch.testing.assert_close(loss, 3.0 * divergence + 0.5 * (1 - cosine))
    want = {"loss/csm": divergence, "loss/feature": 1 - cosine, "teacher_cosine": cosine}
    torch.testing.assert_close(metrics, want)


def test_samples_of_weight_zero_take_no_part_in_a_distillation(tiny_config: Path) -> None:
    method = distill(new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0)).encode_image)
    whole = photos(5)
    bad = replace(whole, weights=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]) / 3)
    got, want = method(bad), method(averaged(part_of(whole, 0, 3)))
    torch.testing.assert_close(got, want)
    assert set(got[1]) == {"loss/csm", "loss/feature", "teacher_cosine"}


def test_a_student_that_is_its_teacher_has_cosine_one_and_no_feature_loss(tiny_config: Path) -> None:
    clip = new_clip(tiny_config, seed=0)
    _, metrics = distill(clip, Teacher(clip).encode_image)(averaged(photos(4)))
    assert metrics["teacher_cosine"].item() == pytest.approx(1.0, abs=1e-6)
    assert metrics["loss/feature"].item() == pytest.approx(0.0, abs=1e-6)


def test_terms_of_the_batch_are_added_and_leave_out_samples_without_a_caption(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    batch = replace(photos(5), captions=["", "a cat", "a dog", "", "a fish"])
    method = Distillation(
        student.image_tower,
        [teacher.encode_image],
        [random_anchors(6, student.embed_dim)],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(),
        augmentation=PLAIN,
        terms=BatchTermsConfig(icl_weight=2.0, relation_weight=3.0),
        embed_texts=teacher.encode_text,
    )
    loss, metrics = method(averaged(batch))
    images = method.embed_images(batch.pixels)
    captioned = [1, 2, 4]
    texts = teacher.encode_text([batch.captions[row] for row in captioned])
    icl = icl_loss(images[captioned], texts, tau=0.2)
    relation = relation_loss(images, teacher.encode_image(batch.pixels), tau_student=0.2, tau_teacher=0.1)
    # A mean over all samples, to which those without a caption add nothing.
    torch.testing.assert_close(metrics["loss/icl"], icl.detach() * 3 / 5)
    torch.testing.assert_close(metrics["loss/relation"], relation.detach())
    of_batch = 2.0 * metrics["loss/icl"] + 3.0 * metrics["loss/relation"]
    torch.testing.assert_close(loss, metrics["loss/csm"] + of_batch)
    assert method(averaged(replace(batch, captions=[""] * 5)))[1]["loss/icl"] == 0.0


@pytest.mark.parametrize("view", ["same", "weak"])
def test_the_teacher_sees_what_the_student_sees_or_the_crop_alone(tiny_config: Path, view: Any) -> None:
    seen = dict[str, Tensor]()
    clip = new_clip(tiny_config, seed=0)

    def embed(pixels: Tensor) -> Tensor:
        seen["teacher"] = pixels
        return F.normalize(torch.ones(len(pixels), 16), dim=1)

    strong = Augmentation(flip_prob=0.5, rotate=30.0, teacher_view=view)
    method = distill(clip, embed, strong)
    method.visual.register_forward_pre_hook(lambda module, args: seen.update(student=args[0]))
    batch = photos(4)
    method(batch)
    augmented = augment(batch.pixels, batch.draws, strong)
    assert not torch.equal(augmented, batch.pixels)
    assert torch.equal(seen["teacher"], augmented if view == "same" else batch.pixels)
    torch.testing.assert_close(seen["student"], normalise_pixels(augmented, clip.preprocessing))


def test_state_of_a_distillation_holds_the_student_tower_and_nothing_else(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    state = distill(student, teacher.encode_image).state_dict()
    want = {f"visual.{name}": value for name, value in student.model.visual.state_dict().items()}
    torch.testing.assert_close(dict(state), want)


def test_deep_copies_of_a_distillation_share_its_teacher(tiny_config: Path) -> None:
    copies = list[Any]()

    class Counting(Teacher):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Counting":
            copies.append(self)
            return self

    method = distill(new_clip(tiny_config, seed=1), Counting(new_clip(tiny_config, seed=0)).encode_image)
    batch = photos(2)
    torch.testing.assert_close(copy.deepcopy(method)(batch)[0], method(batch)[0])
    assert copies == []


@pytest.mark.slow
def test_training_leaves_weights_and_batch_statistics_of_the_teacher_alone() -> None:
    clip = new_clip("tiny-resnet10t", seed=0)
    teacher = Teacher(clip)
    before = copy.deepcopy(teacher.state_dict())
    assert any(name.endswith("running_mean") for name in before)
    student = build_student(StudentConfig(student="resnet10t"), clip, seed=1)
    student_before = copy.deepcopy(student.model.visual.state_dict())
    method = distill(student, teacher.encode_image)
    method.train()
    training = Training(method, OptimConfig(lr=1e-3), total_steps=2, device=torch.device("cpu"), seed=0)
    for _ in range(2):
        training.advance([photos(4, clip.image_size)])
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    after = student.model.visual.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, student_before[name])}
    assert {name for name in after if name.endswith(("running_mean", "conv1.weight"))} <= changed


def test_pretraining_has_the_loss_of_open_clip(tiny_config: Path) -> None:
    clip = new_clip(tiny_config, seed=1)
    batch = averaged(photos(5))
    loss, metrics = ImageTextPretraining(clip, augmentation=PLAIN)(batch)
    image, text, scale = clip.model(
        normalise_pixels(batch.pixels, clip.preprocessing), clip.tokenizer(batch.captions)
    )
    torch.testing.assert_close(loss, ClipLoss()(image, text, scale))
    torch.testing.assert_close(metrics, {"loss/clip": loss.detach(), "logit_scale": scale.detach()})


def self_distilling(config: Path, **options: Any) -> ImageTextPretraining:
    psd = PsdConfig(psd_warmup=0.5, psd_schedule="linear", **options)
    return ImageTextPretraining(
        new_clip(config, seed=1), augmentation=PLAIN, objective="psd", psd=psd, seed=5
    )


def test_the_self_distilled_share_grows_with_the_steps(tiny_config: Path) -> None:
    method = self_distilling(tiny_config, psd_end=1.0)
    shares, losses = [], []
    for step in (0, 4, 5, 6, 8):
        method.begin_step(step, 10)
        loss, metrics = method(photos(10))
        shares.append(metrics["psd/share"].item())
        losses.append(loss.item())
    assert shares == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.6])
    assert losses[0] == losses[1] == losses[2] > losses[3] > losses[4]


def test_each_step_draws_other_rows_and_the_same_step_the_same(tiny_config: Path) -> None:
    method = self_distilling(tiny_config, psd_select="random", psd_start=0.5)

    def loss_at(step: int) -> float:
        method.begin_step(step, 1000)
        return float(method(photos(10))[0].item())

    assert loss_at(500) == loss_at(500)
    assert len({loss_at(step) for step in range(500, 504)}) > 1


def test_the_moving_average_follows_the_model_and_is_not_trained(tiny_config: Path) -> None:
    method = self_distilling(tiny_config, psd_target="ema", psd_ema_decay=0.9, psd_start=0.5)
    training = Training(method, OptimConfig(lr=1e-2), total_steps=4, device=torch.device("cpu"), seed=0)
    weights = method.clip.visual.conv1.weight
    want = weights.detach().clone()
    for _ in range(4):
        want = 0.9 * want + 0.1 * weights.detach()
        _, metrics = training.advance([photos(8)])
        assert metrics["loss"].isfinite()
    kept = method.state_dict()["average.module.visual.conv1.weight"]
    torch.testing.assert_close(kept, want)
    assert not torch.allclose(kept, weights, atol=1e-4)


def test_siglip_is_the_loss_of_open_clip_on_the_embeddings_of_both_towers(tiny_config: Path) -> None:
    clip = new_clip(tiny_config, seed=1, init_logit_scale=2.0, init_logit_bias=-10.0)
    batch = averaged(photos(5))
    loss, metrics = ImageTextPretraining(clip, augmentation=PLAIN, objective="siglip")(batch)
    pixels = normalise_pixels(batch.pixels, clip.preprocessing)
    image, text = (
        clip.model.encode_image(pixels, True),
        clip.model.encode_text(clip.tokenizer(batch.captions), True),
    )
    want = SigLipLoss()(image, text, torch.tensor(2.0).exp(), torch.tensor(-10.0))
    torch.testing.assert_close(loss, want)
    assert metrics["logit_bias"].item() == -10.0


@pytest.mark.parametrize(("logarithm", "scale"), [(9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))])
def test_pretraining_keeps_its_scale_between_1_and_100(
    tiny_config: Path, logarithm: float, scale: float
) -> None:
    clip = new_clip(tiny_config, seed=1)
    clip.model.logit_scale.data.fill_(logarithm)
    _, metrics = ImageTextPretraining(clip, augmentation=PLAIN)(photos(2))
    assert metrics["logit_scale"].item() == pytest.approx(scale, rel=1e-6)


@pytest.fixture(scope="module")
def two_workers(python: list[str], tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes leave what they found in steps on their shares of one batch."""
    folder = tmp_path_factory.mktemp("two-workers")
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*python, str(WORKER), str(rank), "2", str(tiny_config), str(folder)], env=environment
        )
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.fixture(scope="module")
def gradients_of_two_workers(two_workers: Path) -> dict[str, dict[str, Tensor]]:
    gradients: dict[str, dict[str, Tensor]] = torch.load(two_workers / "gradients.pt")
    return gradients


def step_on_the_whole_batch(name: str, config: Path, *, unusable: bool = False) -> dict[str, Tensor]:
    program = runpy.run_path(str(WORKER))
    whole = program["rows_of"](
        list(range(program["SAMPLES"])), unusable=program["UNUSABLE"] if unusable else ()
    )
    gradients: dict[str, Tensor] = program["gradients_of_step"](
        program["METHODS"][name](str(config)), [whole]
    )
    return gradients


every_method = pytest.mark.parametrize(
    "name",
    [
        *("distillation", "distillation terms", "distillation vision"),
        *("pretraining", "siglip", "psd swap", "psd ema"),
    ],
)


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("passes", ["", "accumulated "])
def test_two_workers_on_halves_have_the_gradient_of_one_on_the_whole_batch(
    passes: str, name: str, tiny_config: Path, gradients_of_two_workers: dict[str, dict[str, Tensor]]
) -> None:
    want = step_on_the_whole_batch(name, tiny_config)
    assert max(gradient.abs().max() for gradient in want.values()) > 1e-2
    torch.testing.assert_close(gradients_of_two_workers[passes + name], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_method
def test_samples_that_are_dealt_out_between_padding_have_the_gradient_of_the_good_ones(
    name: str, tiny_config: Path, gradients_of_two_workers: dict[str, dict[str, Tensor]]
) -> None:
    want = step_on_the_whole_batch(name, tiny_config, unusable=True)
    assert not torch.allclose(
        *(next(iter(found.values())) for found in (want, step_on_the_whole_batch(name, tiny_config)))
    )
    torch.testing.assert_close(gradients_of_two_workers[f"dealt {name}"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_all_ranks_skip_a_step_without_a_good_sample_and_none_skips_one_with(two_workers: Path) -> None:
    start, skipped, taken = torch.load(two_workers / "few.0.pt")
    assert torch.equal(skipped, start)
    assert not torch.equal(taken, start)
    assert all(map(torch.equal, torch.load(two_workers / "few.1.pt"), (start, skipped, taken)))


@pytest.mark.slow
@every_method
def test_parts_of_a_batch_that_are_accumulated_have_the_gradient_of_the_whole(
    name: str, tiny_config: Path
) -> None:
    program = runpy.run_path(str(WORKER))
    parts = [program["batch_of"](start, start + 2) for start in range(0, program["SAMPLES"], 2)]
    got = program["gradients_of_step"](program["METHODS"][name](str(tiny_config)), parts)
    torch.testing.assert_close(got, step_on_the_whole_batch(name, tiny_config), rtol=1e-4, atol=2e-5)


def test_the_loss_of_accumulated_parts_is_that_of_the_whole_batch(tiny_config: Path) -> None:
    whole, parts = photos(8), [part_of(photos(8), start, start + 2) for start in range(0, 8, 2)]
    losses = []
    for batches in ([whole], parts):
        _, metrics = training_of(pretrain(tiny_config)).advance(batches)
        losses.append(metrics["loss"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accumulated_parts_move_batch_statistics_once() -> None:
    parts = [part_of(photos(8), start, start + 4) for start in (0, 4)]
    method = ImageTextPretraining(new_clip("nano-resnet10t", seed=1), augmentation=PLAIN).train()
    by_hand = copy.deepcopy(method)
    training_of(method).advance(parts)
    for part in parts:
        by_hand.embed(part)
    got, want = (dict(model.clip.visual.named_buffers()) for model in (method, by_hand))
    assert any(name.endswith("running_var") for name in want)
    torch.testing.assert_close(got, want)


def test_both_passes_over_a_part_drop_the_same(tiny_config: Path) -> None:
    method = pretrain(tiny_config)
    dropout = nn.Dropout(0.5)
    method.clip.visual.ln_post = nn.Sequential(method.clip.visual.ln_post, dropout)
    dropped: list[Tensor] = []
    dropout.register_forward_hook(lambda *args: dropped.append(args[-1] == 0))
    training_of(method).advance([part_of(photos(8), 0, 4), part_of(photos(8), 4, 8)])
    first, second, first_again, second_again = dropped
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distillation", "pretraining"])
def test_recomputed_activations_leave_the_gradients_as_they_are(
    name: str, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = runpy.run_path(str(WORKER))
    whole = program["batch_of"](0, program["SAMPLES"])
    runs, gradients = [], []
    for enable in (False, True):
        method = program["METHODS"][name](str(tiny_config))
        visual = method.visual if name == "distillation" else method.clip.visual
        calls: list[int] = []
        visual.transformer.resblocks[0].ln_1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        config = OptimConfig(lr=1e-3, clip_norm=0.0, precision="fp32", grad_checkpointing=enable)
        monkeypatch.setitem(program["gradients_of_step"].__globals__, "EXACT", config)
        gradients.append(program["gradients_of_step"](method.train(), [whole]))
        runs.append(len(calls))
    assert runs == [1, 2]
    torch.testing.assert_close(gradients[1], gradients[0])


def pretrain(config: Path) -> ImageTextPretraining:
    return ImageTextPretraining(new_clip(config, seed=1), augmentation=PLAIN).train()


def training_of(method: nn.Module) -> Training:
    config = OptimConfig(lr=1e-3, precision="fp32")
    return Training(method, config, total_steps=10, device=torch.device("cpu"), seed=0)


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    return Batch(
        batch.pixels[rows],
        batch.draws[rows],
        batch.captions[rows],
        keys=batch.keys[rows],
        epochs=batch.epochs[rows],
        weights=batch.weights[rows],
        numbers=batch.numbers[rows],
        global_size=batch.global_size,
        good=stop - start,
    )


def test_embeddings_of_a_batch_stand_for_the_teachers_image_tower(tiny_config: Path) -> None:
    """Rounded to half precision, as a cache holds them."""
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    batch = averaged(photos(5))
    live, of_live = distill(student, teacher.encode_image)(batch)
    method = Distillation(
        student.image_tower,
        [],
        [random_anchors(6, 16)],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2, csm_weight=3.0),
        feature=FeatureConfig(feature_weight=0.5),
        augmentation=PLAIN,
    )
    pixels = augment(batch.pixels, batch.draws, PLAIN)
    cached, of_cached = method(replace(batch, embeddings=(teacher.encode_image(pixels).half(),)))
    torch.testing.assert_close(cached, live, rtol=3e-4, atol=0)
    assert set(of_cached) == set(of_live)
    others = (teacher.encode_image(pixels).roll(1, 0).half(),)
    assert abs(method(replace(batch, embeddings=others))[0] - live) > 2e-3 * live


@pytest.mark.parametrize(("further", "second"), [((), 0.1), ((0.3,), 0.3)])
def test_several_teachers_teach_by_the_mean_of_their_distributions(
    tiny_config: Path, further: tuple[float, ...], second: float
) -> None:
    """Each at its own temperature, or all at that of the first."""
    student = new_clip(tiny_config, seed=1)
    teachers = [Teacher(new_clip(tiny_config, seed=seed)) for seed in (0, 2)]
    anchors = [random_anchors(6, 16), Anchors(random_anchors(6, 16).embeddings.flip(1), torch.arange(6))]
    batch = averaged(photos(5))
    csm = CsmConfig(tau_teacher=0.1, tau_student=0.2, more_tau_teachers=further)
    method = Distillation(
        student.image_tower,
        [teacher.encode_image for teacher in teachers],
        anchors,
        csm=csm,
        feature=FeatureConfig(),
        augmentation=PLAIN,
    )
    loss, _ = method(batch)
    with torch.no_grad():
        s = F.normalize(
            student.model.encode_image(normalise_pixels(batch.pixels, student.preprocessing)), dim=1
        )
        p = sum(
            (teacher.encode_image(batch.pixels) @ own.embeddings.T / tau).softmax(dim=1) / 2
            for teacher, own, tau in zip(teachers, anchors, (0.1, second), strict=True)
        )
        q = (s @ anchors[0].embeddings.T / 0.2).softmax(dim=1)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(dim=1).mean())


VISION = VisionConfig(vision_relation_weight=2.0, vision_tau=0.1, vision_feature_weight=3.0)


def colours(width: int) -> Callable[[Tensor], Tensor]:
    """Stands for a teacher of vision only: random directions, by the mean colour of an image."""
    directions = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    return lambda pixels: F.normalize(pixels.float().mean(dim=(2, 3)).sub(127.5) @ directions, dim=1)


def seeing(student: LoadedClip, embed: Callable[[Tensor], Tensor], vision: VisionConfig) -> Distillation:
    """A student of a teacher and of two of vision only, which are 7 and 5 wide."""
    return Distillation(
        student.image_tower,
        [embed, colours(7), colours(5)],
        [random_anchors(6, student.embed_dim)],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(),
        augmentation=PLAIN,
        vision=vision,
        vision_widths=(7, 5),
        seed=4,
    )


def test_features_learn_from_the_mean_over_teachers_of_vision_only(tiny_config: Path) -> None:
    """Relations and cosines are written out; the features are those before the student's projection."""
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    batch = averaged(photos(5))
    method = seeing(student, teacher.encode_image, VISION)
    loss, metrics = method(batch)
    tower = copy.deepcopy(student.model.visual)
    tower.proj = None
    with torch.no_grad():
        features = tower(normalise_pixels(batch.pixels, student.preprocessing))
        unit = features / features.norm(dim=1, keepdim=True)
        relations, distances = [], []
        for embed, layer in zip((colours(7), colours(5)), method.projections, strict=True):
            seen = embed(batch.pixels)
            projected = features @ layer.weight.T + layer.bias
            distances.append(1 - F.cosine_similarity(projected, seen).mean())
            for row in range(5):
                others = [other for other in range(5) if other != row]
                p = (seen[others] @ seen[row] / 0.1).softmax(dim=0)
                q = (unit[others] @ unit[row] / 0.1).softmax(dim=0)
                relations.append((p * (p / q).log()).sum())
        relation, distance = torch.stack(relations).mean(), torch.stack(distances).mean()
    torch.testing.assert_close(metrics["loss/vision_relation"], relation, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["loss/vision_feature"], distance)
    torch.testing.assert_close(loss, metrics["loss/csm"] + 2 * relation + 3 * distance, rtol=1e-4, atol=1e-6)


def test_a_clip_head_is_free_of_teachers_of_vision_only(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    gradients = {}
    for name, weights in (("alone", VisionConfig()), ("beside", VISION)):
        student.model.visual.zero_grad()
        method = seeing(student, teacher.encode_image, weights)
        method(averaged(photos(5)))[0].backward()
        visual = student.model.visual
        gradients[name] = (visual.proj.grad.clone(), visual.conv1.weight.grad.clone())
        assert all(each.grad is not None for each in method.projections.parameters())
    torch.testing.assert_close(gradients["beside"][0], gradients["alone"][0])
    assert not torch.allclose(gradients["beside"][1], gradients["alone"][1], rtol=1e-2)


def test_projections_are_in_the_state_come_from_the_seed_and_learn(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    methods = [seeing(student, teacher.encode_image, VISION) for _ in range(2)]
    torch.testing.assert_close(*(dict(method.projections.state_dict()) for method in methods))
    names = {name for name in methods[0].state_dict() if not name.startswith("visual.")}
    assert names == {f"projections.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")}
    training = training_of(methods[0].train())
    losses = [training.advance([photos(8)])[1]["loss/vision_feature"] for _ in range(6)]
    assert losses[-1] < losses[0]


def test_without_weights_features_of_the_student_are_not_made(tiny_config: Path) -> None:
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    method = seeing(student, teacher.encode_image, VisionConfig())
    assert [len(method.embed(photos(3)).learned), len(method.projections)] == [1, 0]
    method = seeing(student, teacher.encode_image, replace(VISION, vision_feature_weight=0.0))
    assert [len(method.embed(photos(3)).learned), len(method.projections)] == [2, 0]


def test_features_in_a_batch_stand_for_teachers_of_vision_only(tiny_config: Path) -> None:
    """With the embedding of the caption after them, as in a cache."""
    student, teacher = new_clip(tiny_config, seed=1), Teacher(new_clip(tiny_config, seed=0))
    batch = averaged(photos(5))
    terms = BatchTermsConfig(icl_weight=1.0)
    live = seeing(student, teacher.encode_image, VISION)
    live.terms, live.embed_texts = terms, teacher.encode_text
    cached = seeing(student, teacher.encode_image, VISION)
    cached.terms, cached.teachers = terms, []
    given = (*(embed(batch.pixels) for embed in live.teachers), teacher.encode_text(batch.captions))
    got = cached(replace(batch, embeddings=tuple(each.half() for each in given)))
    torch.testing.assert_close(got, live(batch), rtol=2e-3, atol=1e-4)


@pytest.mark.slow
@every_method
def test_two_workers_validate_as_one_does(name: str, tiny_config: Path, two_workers: Path) -> None:
    want = runpy.run_path(str(WORKER))["scores_of"](name, str(tiny_config), 0, 1)
    assert {"val_zeroshot_top1", "val_knn_top1", "val_loss"} == set(want)
    for rank in range(2):
        got = json.loads((two_workers / f"scores.{rank}.json").read_text())[name]
        assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_all_workers_validate_with_the_batch_statistics_of_the_first(two_workers: Path) -> None:
    found = [json.loads((two_workers / f"scores.{rank}.json").read_text()) for rank in range(2)]
    assert [each["running mean"] for each in found] == [0.0, 0.0]
