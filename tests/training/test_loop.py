"""The loop against closed forms, torch's own schedulers and sums by hand; no Ray anywhere."""

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from batches import all_good, averaged
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.errors import InputError
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import new_clip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.checkpoint import read_checkpoint, write_checkpoint
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import NonFiniteLossError, Training, run_loop
from beamclip.training.optim import autocast_dtype, build_optimizer, learning_rate, set_learning_rate
from beamclip.training.pretraining import ImageTextPretraining
from beamclip.training.questions import Request

CPU = torch.device("cpu")
FP32 = OptimConfig(lr=1e-3, precision="fp32")


class Brightness(nn.Module):
    """A regression whose loss and gradient can be had by hand: (w . mean colour - 1)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.5)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = batch.weights @ (self.linear(mean_colours(batch)) - 1.0).square()[:, 0]
        return loss, {"twice": 2.0 * loss.detach()}


def mean_colours(batch: Batch) -> Tensor:
    return batch.pixels.float().mean(dim=(2, 3)) / 255.0


def photos(seed: int, count: int = 4, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    draws = torch.rand(count, AUGMENT_DRAWS, generator=generator)
    keys = [f"{seed}/{i}" for i in range(count)]
    captions, rows = [f"photo {key}" for key in keys], all_good(count)
    return Batch(pixels, draws, captions, **rows, keys=keys, epochs=[seed] * count, skipped={"seed": seed})


def endless(start: int = 0) -> Iterator[Batch]:
    while True:
        yield photos(start)
        start += 1


def in_steps_of(count: int) -> Iterator[Batch]:
    """The same batches, as many of them the micro-batches of a step."""
    for number, batch in enumerate(endless(), 1):
        yield replace(batch, ends_step=number % count == 0)


def train(method: nn.Module, config: OptimConfig = FP32, total_steps: int = 10) -> Training:
    return Training(method, config, total_steps=total_steps, device=CPU, seed=0)


def distill(config: Path) -> Distillation:
    embeddings = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    return Distillation(
        new_clip(config, seed=1).image_tower,
        [Teacher(new_clip(config, seed=0)).encode_image],
        [Anchors(F.normalize(embeddings, dim=1), torch.arange(6))],
        csm=CsmConfig(),
        feature=FeatureConfig(feature_weight=1.0),
        augmentation=Augmentation(),
    )


@dataclass
class Log:
    """Hooks that remember what they were told."""

    requests: dict[float, Request] = field(default_factory=dict)
    """What to ask for, at which steps."""
    records: list[dict[str, float]] = field(default_factory=list)
    saved: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, int]] = field(default_factory=list)
    keys: dict[int, list[str]] = field(default_factory=dict)

    def seen(self, step: int, batches: list[Batch]) -> None:
        self.keys[step] = [key for batch in batches for key in batch.keys]

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)

    def save(self, state: dict[str, Any], skipped: dict[str, int], record: dict[str, float]) -> None:
        assert record is self.records[-1]
        self.saved.append(deepcopy(state))
        self.skipped.append(skipped)

    def asked(self, step: int) -> Request:
        return self.requests.get(step, "nothing")

    def steps(self) -> list[float]:
        return [record["step"] for record in self.records]


@pytest.mark.parametrize(("total", "warmup"), [(20, 0.25), (7, 0.3), (10, 0.0), (10, 1.0)])
def test_learning_rate_is_a_linear_warm_up_and_then_a_half_cosine(total: int, warmup: float) -> None:
    config = replace(FP32, lr=0.4, warmup=warmup)
    rising = max(1, round(warmup * total))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    rise = LinearLR(optimizer, start_factor=1 / rising, total_iters=rising - 1)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, total - rising))
    reference = SequentialLR(optimizer, [rise, fall], milestones=[rising])
    want = []
    for _ in range(total):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert [learning_rate(step, total, config) for step in range(total)] == pytest.approx(want)


def test_learning_rate_starts_above_zero_peaks_after_warm_up_and_ends_at_zero() -> None:
    config = replace(FP32, lr=0.4, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[9] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "linear", "lr_floor": 0.2}, [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ({"schedule": "constant"}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            {"schedule": "constant", "cooldown": 0.4, "lr_floor": 0.2},
            [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4],
        ),
        (
            {"schedule": "cosine", "cooldown": 0.4, "lr_floor": 0.2},
            [0.5, 1.0, 1.0, 0.8829, 0.6, 0.3172, 0.2, 0.2, 0.2, 0.2],
        ),
    ],
)
def test_schedules_and_cooldowns_end_at_the_floor(options: dict[str, Any], rates: list[float]) -> None:
    config = replace(FP32, lr=1.0, warmup=0.2, **options)
    assert [learning_rate(step, 10, config) for step in range(10)] == pytest.approx(rates, abs=1e-4)
    assert learning_rate(10, 10, config) == pytest.approx(1.0 if options == {"schedule": "constant"} else 0.2)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", partial(torch.optim.SGD, nesterov=True, weight_decay=1e-4)),
        ("lars", partial(Lars, weight_decay=1e-6)),
    ],
)
def test_other_optimisers_take_the_steps_of_their_libraries(
    name: Any, reference: Callable[..., torch.optim.Optimizer]
) -> None:
    training = train(Brightness(), replace(FP32, optimizer=name, lr=0.1, warmup=0.0, schedule="constant"))
    weight = Brightness().linear.weight
    optimizer = reference([weight], lr=0.1, momentum=0.9)
    for step in range(4):
        training.advance([photos(step)])
        optimizer.zero_grad()
        (mean_colours(photos(step)) @ weight.T - 1.0).square().mean().backward()
        nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
    torch.testing.assert_close(training.bare.linear.weight, weight)


def test_layers_near_the_input_take_smaller_steps() -> None:
    tower = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3)
    optimizer = build_optimizer(tower, replace(FP32, layer_decay=0.5, weight_decay=0.1))
    factors = {id(p): group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: factors[id(parameter)] for name, parameter in tower.named_parameters()}
    assert named["pos_embed"] == named["patch_embed.proj.weight"]
    blocks = [named[f"blocks.{block}.attn.qkv.weight"] for block in range(3)]
    assert [b / a for a, b in pairwise([named["pos_embed"], *blocks])] == [2.0] * 3
    set_learning_rate(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8 * factor for factor in named.values()}


def test_each_step_is_taken_with_its_learning_rate() -> None:
    training = train(Brightness(), replace(FP32, lr=0.1, warmup=0.5), total_steps=4)
    taken = []
    training.optimizer.register_step_pre_hook(
        lambda *_: taken.append(training.optimizer.param_groups[0]["lr"])
    )
    for step in range(4):
        training.advance([photos(step)])
    assert taken == pytest.approx([0.05, 0.1, 0.1, 0.05])


def decayed_names(method: nn.Module) -> set[str]:
    optimizer = build_optimizer(method, replace(FP32, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = {
        group["weight_decay"]: {names.pop(id(p)) for p in group["params"]} for group in optimizer.param_groups
    }
    assert set(groups) == {0.1, 0.0}
    assert all(not method.get_parameter(name).requires_grad for name in names.values())
    return groups[0.1]


def test_of_a_clip_only_matrices_and_convolutions_decay(tiny_config: Path) -> None:
    method = ImageTextPretraining(new_clip(tiny_config, seed=0), augmentation=Augmentation())
    block = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    want = {"clip.visual.conv1.weight", "clip.visual.proj", "clip.text_projection"}
    want |= {f"clip.visual.transformer.resblocks.{i}.{name}" for i in range(2) for name in block}
    want |= {f"clip.transformer.resblocks.0.{name}" for name in block}
    assert decayed_names(method) == want


def test_tensors_that_two_towers_share_decay_once_in_a_group_of_their_own() -> None:
    model = new_clip("tiny-msclip-s", seed=0).model
    optimizer = build_optimizer(model, replace(FP32, weight_decay=0.01, shared_weight_decay=0.3))
    groups = {g["weight_decay"]: {id(p) for p in g["params"]} for g in optimizer.param_groups}
    every = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
    blocks = model.visual.transformer.resblocks
    layers = [layer for block in blocks for layer in (block.attn, block.mlp)]
    matrices = {id(p) for layer in layers for p in layer.parameters() if p.ndim == 2}
    assert len(matrices) == 4 * len(blocks)
    assert groups[0.3] == matrices
    assert id(model.text.transformer.resblocks[0].attn.in_proj_weight) in groups[0.01]


def test_of_a_resnet_student_no_norm_and_no_bias_decays(tiny_config: Path) -> None:
    teacher = new_clip(tiny_config, seed=0)
    student = build_student(StudentConfig(student="resnet10t"), teacher, seed=0).model.visual
    layers = dict(student.named_modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in layers.values())
    matrices = {f"{name}.weight" for name, m in layers.items() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert decayed_names(student) == matrices


def test_of_a_timm_vit_positions_and_tokens_do_not_decay() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, reg_tokens=2, no_embed_class=True, depth=1)
    assert {"pos_embed", "cls_token", "reg_token"}.isdisjoint(decayed_names(vit))
    assert "blocks.0.attn.qkv.weight" in decayed_names(vit)


def test_frozen_parameters_are_not_optimised() -> None:
    method = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    method[0].requires_grad_(False)
    assert decayed_names(method) == {"1.weight"}


def test_decay_takes_lr_times_weight_decay_of_a_weight_that_has_no_gradient() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return 0.0 * (self.linear.weight.sum() + self.linear.bias.sum()), {}

    method = Still()
    weight, bias = method.linear.weight.detach().clone(), method.linear.bias.detach().clone()
    train(method, replace(FP32, lr=0.1, weight_decay=0.5, warmup=0.0)).advance([photos(0)])
    torch.testing.assert_close(method.linear.weight.detach(), weight * (1 - 0.1 * 0.5))
    torch.testing.assert_close(method.linear.bias.detach(), bias)


@pytest.mark.parametrize(("clip_norm", "share"), [(0.25, 0.25), (0.0, 1.0), (1e6, 1.0)])
def test_gradient_is_clipped_to_its_largest_norm(clip_norm: float, share: float) -> None:
    method, batch = Brightness(), photos(0)
    colours = mean_colours(batch)
    gradient = (2.0 * (colours.sum(dim=1, keepdim=True) * 0.5 - 1.0) * colours).mean(dim=0)
    training = train(method, replace(FP32, clip_norm=clip_norm * gradient.norm().item()))
    seen = []
    training.optimizer.register_step_pre_hook(lambda *_: seen.append(method.linear.weight.grad.clone()))
    norm, _ = training.advance([batch])
    torch.testing.assert_close(norm, gradient.norm())
    torch.testing.assert_close(seen[0][0], gradient * share, rtol=1e-5, atol=1e-6)


def test_metrics_of_a_step_are_means_over_its_micro_batches() -> None:
    batches = [photos(0), photos(1)]
    losses = torch.stack([Brightness()(averaged(batch))[0].detach() for batch in batches])
    _, metrics = train(Brightness()).advance(batches)
    torch.testing.assert_close(metrics, {"loss": losses.mean(), "twice": 2.0 * losses.mean()})


def with_bad_rows(batch: Batch, *bad: int) -> Batch:
    weights = batch.weights.clone()
    weights[list(bad)] = 0.0
    return replace(batch, weights=weights, good=len(weights) - len(bad))


def empty(seed: int) -> Batch:
    return with_bad_rows(photos(seed), 0, 1, 2, 3)


def test_micro_batches_count_by_their_good_rows() -> None:
    batches = [with_bad_rows(photos(0), 1), empty(1), with_bad_rows(photos(2), 0, 2, 3)]
    colours = torch.cat([mean_colours(batch)[batch.weights > 0] for batch in batches])
    assert len(colours) == 4
    error = colours.sum(dim=1, keepdim=True) * 0.5 - 1.0
    method, seen = Brightness(), list[Tensor]()
    training = train(method, replace(FP32, clip_norm=0.0))
    training.optimizer.register_step_pre_hook(lambda *_: seen.append(method.linear.weight.grad.clone()))
    _, metrics = training.advance(batches)
    torch.testing.assert_close(seen[0][0], (2.0 * error * colours).mean(dim=0))
    torch.testing.assert_close(metrics, {"loss": error.square().mean(), "twice": 2.0 * error.square().mean()})


def test_a_step_without_a_good_sample_changes_nothing_but_the_step() -> None:
    class Told(Brightness):
        steps: tuple[int, ...] = ()

        def begin_step(self, step: int, total_steps: int) -> None:
            self.steps += (step,)

    method = Told()
    training = train(method, replace(FP32, lr=0.1, weight_decay=0.5, ema_decay=0.75))
    training.advance([photos(0)])
    before = deepcopy(training.state())
    _, metrics = training.advance([empty(1), empty(2)])
    assert metrics == {}
    assert method.steps == (0,)
    after = training.state()
    assert (before.pop("step"), after.pop("step")) == (1, 2)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    training.advance([photos(3)])
    assert method.steps == (0, 2)


def test_a_run_without_a_good_sample_ends_with_an_error_and_saves_nothing() -> None:
    log = Log()
    nothing = (empty(step) for step in count())
    with pytest.raises(InputError, match="no step had a sample with a usable image"):
        run_loop(train(Brightness(), total_steps=3), nothing, CadenceConfig(log_every=1), log)
    assert (log.steps(), log.saved) == ([1, 2, 3], [])


def test_last_steps_without_a_good_sample_do_not_undo_what_was_learned() -> None:
    first, log = train(Brightness(), total_steps=1), Log()
    run_loop(first, endless(), CadenceConfig(log_every=1), log)
    resumed = train(Brightness(), total_steps=2)
    resumed.load(log.saved[-1])
    run_loop(resumed, (empty(step) for step in count()), CadenceConfig(log_every=1), log)
    assert [state["step"] for state in log.saved] == [1, 2]


def test_an_average_begins_with_the_first_weights_that_were_learned() -> None:
    training = train(Brightness(), replace(FP32, lr=0.1, ema_decay=0.75))
    for batch in (empty(0), photos(1)):
        training.advance([batch])
    state = training.state()
    torch.testing.assert_close(state["ema"], dict(state["method"]), rtol=0, atol=0)


def test_average_of_the_weights_follows_its_recurrence() -> None:
    method = Brightness()
    training = train(method, replace(FP32, lr=0.1, ema_decay=0.75))
    want = None
    for step in range(4):
        training.advance([photos(step)])
        weight = method.linear.weight.detach().clone()
        want = weight if want is None else 0.75 * want + 0.25 * weight
    torch.testing.assert_close(training.state()["ema"]["linear.weight"], want)
    assert not torch.allclose(want, method.linear.weight)


def test_average_covers_batch_statistics() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=1.0)

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return self.norm(mean_colours(batch)).square().mean(), {}

    training = train(Normalised(), replace(FP32, ema_decay=0.75))
    means = [mean_colours(photos(step)).mean(dim=0) for step in range(2)]
    for step in range(2):
        training.advance([photos(step)])
    got = training.state()["ema"]["norm.running_mean"]
    torch.testing.assert_close(got, 0.75 * means[0] + 0.25 * means[1])


def test_average_copies_what_has_no_average() -> None:
    class Masked(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.calls += 10
            return super().forward(batch)

    training = train(Masked(), replace(FP32, ema_decay=0.75))
    for step in range(3):
        training.advance([photos(step)])
    average = training.state()["ema"]
    assert average["mask"].tolist() == [[0.0, -math.inf], [0.0, 0.0]]
    assert average["calls"] == 30


def test_an_average_that_begins_in_a_resumed_run_begins_with_its_weights() -> None:
    plain = train(Brightness(), replace(FP32, lr=0.1))
    plain.advance([photos(0)])
    resumed = train(Brightness(), replace(FP32, lr=0.1, ema_decay=0.75))
    resumed.load(plain.state())
    before = resumed.bare.linear.weight.detach().clone()  # type: ignore[union-attr]
    resumed.advance([photos(1)])
    after = resumed.bare.linear.weight.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(resumed.state()["ema"]["linear.weight"], 0.75 * before + 0.25 * after)


def test_without_an_average_the_state_has_none() -> None:
    assert train(Brightness()).state()["ema"] is None


def test_bf16_comes_close_to_fp32_and_keeps_weights_in_fp32(tiny_config: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        training = train(distill(tiny_config), OptimConfig(lr=1e-3, precision=precision))  # type: ignore[arg-type]
        losses[precision] = training.advance([photos(0, count=16)])[1]["loss"].item()
        assert {parameter.dtype for parameter in training.method.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_fp16_passes_over_a_step_that_overflows_and_halves_the_scale(tiny_config: Path) -> None:
    training = train(distill(tiny_config), OptimConfig(lr=1e-3, precision="fp16"))
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = deepcopy(training.bare.state_dict())
    norm, metrics = training.advance([photos(0, count=16)])
    assert norm == 0.0
    assert metrics["loss_scale"] == 2.0**119
    weights = dict(training.bare.named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    resumed = train(distill(tiny_config), OptimConfig(lr=1e-3, precision="fp16"))
    resumed.load({**training.state(), "optimizer": resumed.optimizer.state_dict()})
    assert resumed.scaler.get_scale() == 2.0**119


def test_fp16_comes_close_to_fp32(tiny_config: Path) -> None:
    found = {}
    for precision in ("fp32", "fp16"):
        training = train(distill(tiny_config), OptimConfig(lr=1e-3, precision=precision))  # type: ignore[arg-type]
        # At its first scale, this loss overflows.
        training.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "fp16")
        found[precision] = [training.advance([photos(step, count=16)]) for step in range(2)]
    for (norm, metrics), (norm16, metrics16) in zip(*found.values(), strict=True):
        assert metrics16["loss"] == pytest.approx(metrics["loss"].item(), rel=0.01)
        assert norm16.item() == pytest.approx(norm.item(), rel=0.05)


def test_precision_names_the_dtype_of_autocast() -> None:
    assert autocast_dtype("fp16", CPU) is torch.float16
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    assert autocast_dtype("auto", CPU) in (None, torch.bfloat16)


@pytest.mark.slow
def test_four_steps_equal_two_and_two_with_a_saved_state_between(tiny_config: Path, tmp_path: Path) -> None:
    dropping = json.loads(tiny_config.read_text())
    dropping["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "dropping.json").write_text(json.dumps(dropping))

    def start() -> Training:
        method = distill(tmp_path / "dropping.json")
        method.train()
        return train(method, OptimConfig(lr=1e-3, precision="fp32", ema_decay=0.9), total_steps=4)

    def losses(training: Training, steps: range) -> list[float]:
        return [training.advance([photos(step)])[1]["loss"].item() for step in steps]

    whole = start()
    want = losses(whole, range(4))
    first = start()
    got = losses(first, range(2))
    write_checkpoint(str(tmp_path), first.state(), loss=0.0, world_size=1, data="")
    second = start()
    second.load(read_checkpoint(str(tmp_path), 2))
    torch.rand(7)  # whatever else draws random numbers must not matter
    got += losses(second, range(2, 4))
    assert got == want
    assert second.step == 4
    torch.testing.assert_close(second.state(), whole.state(), rtol=0, atol=0)


def test_loop_logs_and_saves_at_its_steps_and_always_at_the_end() -> None:
    log = Log()
    last = run_loop(train(Brightness()), endless(), CadenceConfig(log_every=3, checkpoint_every=4), log)
    assert log.steps() == [3, 4, 6, 8, 9, 10]
    assert [state["step"] for state in log.saved] == [4, 8, 10]
    assert log.skipped == [{"seed": step - 1} for step in (4, 8, 10)]
    assert last is log.records[-1]


def test_a_record_holds_means_over_the_steps_since_the_last_one() -> None:
    log = Log()
    frozen = replace(FP32, lr=1e-12)
    run_loop(train(Brightness(), frozen, 5), endless(), CadenceConfig(log_every=2), log)
    losses = [Brightness()(averaged(photos(step)))[0].item() for step in range(5)]
    want = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [record["loss"] for record in log.records] == pytest.approx(want)
    assert [record["twice"] for record in log.records] == pytest.approx([2 * value for value in want])
    assert all(record["grad_norm"] > 0 for record in log.records)


def test_rates_of_a_record_add_up_to_its_images() -> None:
    log = Log()
    run_loop(train(Brightness(), FP32, 4), in_steps_of(3), CadenceConfig(log_every=2), log)
    for record in log.records:
        assert record["images_per_second"] * record["window_seconds"] == pytest.approx(2 * 3 * 4)
        assert 0 < record["data_wait_share"] < 1


def test_a_record_leaves_out_what_taught_nothing() -> None:
    batches = [empty(0), empty(1), photos(2), empty(3), with_bad_rows(photos(4), 0), photos(5)]
    log = Log()
    run_loop(train(Brightness(), replace(FP32, lr=1e-12), 6), iter(batches), CadenceConfig(log_every=2), log)
    losses = [Brightness()(averaged(batches[step]))[0].item() for step in (2, 4, 5)]
    first, *others = log.records
    assert "loss" not in first
    assert [record["loss"] for record in others] == pytest.approx([losses[0], sum(losses[1:]) / 2])
    assert [record.get("empty_steps") for record in log.records] == [2, 1, None]
    images = [record["images_per_second"] * record["window_seconds"] for record in log.records]
    assert images == pytest.approx([0, 4, 7])
    assert len(log.saved) == 1


def test_a_step_takes_its_micro_batches_and_no_more() -> None:
    log = Log()
    batches = in_steps_of(3)
    run_loop(train(Brightness(), FP32, 2), batches, CadenceConfig(), log)
    assert log.skipped[-1] == {"seed": 5}
    assert next(batches).skipped == {"seed": 6}


def test_a_loop_that_is_asked_to_stop_saves_and_ends() -> None:
    log = Log({5: "stop"})
    run_loop(train(Brightness()), endless(), CadenceConfig(log_every=2, checkpoint_every=3), log)
    assert log.steps() == [2, 3, 4, 5]
    assert [state["step"] for state in log.saved] == [3, 5]


def test_a_loop_that_is_asked_to_save_saves_once_and_goes_on() -> None:
    log = Log({3: "save", 4: "save"})
    run_loop(train(Brightness()), endless(), CadenceConfig(log_every=2, checkpoint_every=4), log)
    assert [state["step"] for state in log.saved] == [3, 4, 8, 10]


def test_the_samples_of_each_step_are_told() -> None:
    log = Log()
    run_loop(train(Brightness(), FP32, 3), in_steps_of(2), CadenceConfig(), log)
    fresh = endless()
    assert log.keys == {step: next(fresh).keys + next(fresh).keys for step in (1, 2, 3)}


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every"])
def test_a_cadence_below_one_step_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0"):
        CadenceConfig(**{name: 0})


def test_a_finished_run_takes_no_further_step() -> None:
    training, log = train(Brightness(), total_steps=3), Log()
    run_loop(training, endless(), CadenceConfig(), log)
    resumed = train(Brightness(), total_steps=3)
    resumed.load(training.state())
    assert run_loop(resumed, iter([]), CadenceConfig(), log) == {}
    assert len(log.saved) == 1


def infinite_loss(loss: Tensor) -> Tensor:
    return loss * math.inf


def finite_loss_without_a_finite_gradient(loss: Tensor) -> Tensor:
    return loss + (loss - loss).sqrt()


@pytest.mark.parametrize("fault", [infinite_loss, finite_loss_without_a_finite_gradient])
def test_loss_that_is_not_finite_ends_the_loop_before_the_next_checkpoint(
    fault: Callable[[Tensor], Tensor],
) -> None:
    class Faulty(Brightness):
        calls = 0

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.calls += 1
            loss, metrics = super().forward(batch)
            return (fault(loss) if self.calls == 5 else loss), metrics

    log = Log()
    cadence = CadenceConfig(log_every=3, checkpoint_every=4)
    with pytest.raises(NonFiniteLossError, match=r"^step 6: .*(inf|nan)") as raised:
        run_loop(train(Faulty()), endless(), cadence, log)
    assert "--lr" in str(raised.value)
    assert log.steps() == [3, 4]
    assert [state["step"] for state in log.saved] == [4]
    assert torch.isfinite(log.saved[0]["method"]["linear.weight"]).all()
