"""Validation beside training: it changes nothing, and a resumed run is validated as an uninterrupted one."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import all_good
from torch import Tensor, nn

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.evaluation.validation import ClassTexts, Scorer, ValidationSet
from beamclip.losses.config import CsmConfig, FeatureConfig, PsdConfig
from beamclip.models.clip import new_clip
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training, Validation, run_loop
from beamclip.training.pretraining import ImageTextPretraining
from beamclip.training.questions import Request

CPU = torch.device("cpu")
STEPS = 4
OPTIM = OptimConfig(lr=1e-3, precision="fp32", ema_decay=0.5)
SPARSE = CadenceConfig(log_every=100, checkpoint_every=100)


def batches(size: int, start: int = 0) -> Iterator[Batch]:
    """Noise with captions, the same for each step."""
    step = start
    while True:
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randint(0, 256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
        draws = torch.rand(4, AUGMENT_DRAWS, generator=generator)
        yield Batch(pixels, draws, [f"thing {step} {row}" for row in range(4)], **all_good(4))
        step += 1


@dataclass
class Log:
    """Hooks that remember what they were told."""

    records: list[dict[str, float]] = field(default_factory=list)
    saved: list[dict[str, Any]] = field(default_factory=list)
    modes: list[bool] = field(default_factory=list)

    def seen(self, step: int, batches: list[Batch]) -> None:
        pass

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)

    def save(self, state: dict[str, Any], skipped: dict[str, int], record: dict[str, float]) -> None:
        self.saved.append(deepcopy(state))

    def asked(self, step: int) -> Request:
        return "nothing"

    @property
    def scores(self) -> dict[float, dict[str, float]]:
        """Scores of each validation, by step."""
        return {
            record["step"]: {name: value for name, value in record.items() if name.startswith("val_")}
            for record in self.records
            if "val_zeroshot_top1" in record
        }


def distillation() -> Distillation:
    """Distillation into a network with batch norms, from a teacher that knows the mean colour."""
    clip = new_clip("nano-resnet10t", seed=1)
    colours = torch.randn(3, clip.embed_dim, generator=torch.Generator().manual_seed(2))
    return Distillation(
        clip.image_tower,
        [lambda pixels: F.normalize(pixels.float().mean(dim=(2, 3)) @ colours, dim=1)],
        [Anchors(F.normalize(colours, dim=1), torch.arange(3))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.1),
        feature=FeatureConfig(feature_weight=1.0),
        augmentation=Augmentation(),
    )


def pretraining(objective: Any) -> ImageTextPretraining:
    """Pre-training of a network with batch norms, with a scale that is clamped at every step."""
    clip = new_clip("nano-resnet10t", seed=1, **({"init_logit_bias": -10.0} if objective == "siglip" else {}))
    clip.model.logit_scale.data.fill_(9.0)
    psd = PsdConfig(psd_target="ema", psd_warmup=0.0)
    return ImageTextPretraining(clip, augmentation=Augmentation(), objective=objective, psd=psd, seed=5)


METHODS: dict[str, Callable[[], nn.Module]] = {
    "distillation": distillation,
    **{name: partial(pretraining, name) for name in ("clip", "siglip", "psd")},
}


def size_of(method: nn.Module) -> int:
    preprocessing = method.student if isinstance(method, Distillation) else method.preprocessing
    return int(preprocessing.size)


def validation_of(method: nn.Module, every: int, *, saves: bool = False) -> Validation:
    size, width = size_of(method), 3
    images = np.random.default_rng(1).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    labels = np.arange(6) % width
    if isinstance(method, Distillation):
        anchors = Anchors(method.anchors.clone(), torch.arange(3))
        of_teacher = method.teachers[0](torch.from_numpy(images).permute(0, 3, 1, 2))
        held_out = ValidationSet(images, labels, anchors, width, embeddings=(of_teacher,))
    else:
        texts = ClassTexts([["crab"], ["heart"], ["arrow"]], "mean")
        held_out = ValidationSet(images, labels, texts, width, tuple(f"thing {n}" for n in range(6)))
    return Validation(Scorer(held_out, CPU, batch_size=4), every, saves)


def trained(name: str, every: int = 0, state: dict[str, Any] | None = None) -> tuple[Training, Log]:
    method = METHODS[name]().train()
    validation = validation_of(method, every) if every else None
    training = Training(method, OPTIM, total_steps=STEPS, device=CPU, seed=0)
    if state:
        training.load(state)
    log = Log()
    run_loop(training, batches(size_of(method), training.step), SPARSE, log, validation)
    return training, log


@pytest.mark.parametrize("name", list(METHODS))
def test_weights_are_the_same_bits_with_and_without_validation(name: str) -> None:
    with_scores, log = trained(name, every=1)
    without, plain = trained(name)
    assert len(log.scores) == STEPS
    assert plain.scores == {}
    torch.testing.assert_close(with_scores.state(), without.state(), rtol=0, atol=0)
    modes = [[part.training for part in each.bare.modules()] for each in (with_scores, without)]
    assert modes[0] == modes[1]
    losses = [scores["val_loss"] for scores in log.scores.values()]
    assert len(set(losses)) == STEPS
    assert np.isfinite(losses).all()


def test_what_is_validated_is_the_average_in_eval_mode() -> None:
    method = distillation().train()
    training = Training(method, OPTIM, total_steps=STEPS, device=CPU, seed=0)
    seen: list[dict[str, Tensor]] = []

    def look(scored: nn.Module) -> dict[str, float]:
        assert not any(part.training for part in scored.modules())
        seen.append(deepcopy(dict(scored.state_dict())))
        return {"val_zeroshot_top1": 0.5}

    run_loop(training, batches(size_of(method)), SPARSE, Log(), Validation(look, every=STEPS))
    assert training.ema is not None
    torch.testing.assert_close(seen, [training.ema.tensors], rtol=0, atol=0)
    last = training.bare.state_dict()
    assert any(not torch.equal(tensor, last[name]) for name, tensor in seen[0].items())


def test_validations_follow_their_steps_and_the_last_one_and_count_as_no_training() -> None:
    method = distillation().train()
    training = Training(method, OPTIM, total_steps=5, device=CPU, seed=0)
    log = Log()
    cadence = CadenceConfig(log_every=3, checkpoint_every=4)
    run_loop(
        training, batches(size_of(method)), cadence, log, Validation(lambda _: {"val_zeroshot_top1": 1.0}, 2)
    )
    assert [record["step"] for record in log.records] == [2, 3, 4, 5]
    assert list(log.scores) == [2, 4, 5]
    assert all("validation_seconds" in record for record in log.records if record["step"] in log.scores)
    assert [state["step"] for state in log.saved] == [4, 5]


def test_each_validation_is_saved_where_the_best_weights_are_wanted() -> None:
    method = distillation().train()
    training, log = Training(method, OPTIM, total_steps=5, device=CPU, seed=0), Log()
    run_loop(training, batches(size_of(method)), SPARSE, log, validation_of(method, 2, saves=True))
    assert [state["step"] for state in log.saved] == [2, 4, 5]


@pytest.mark.parametrize("name", ["distillation", "psd"])
def test_a_resumed_run_has_the_scores_of_an_uninterrupted_one(name: str) -> None:
    method = METHODS[name]().train()
    whole, log = trained(name, every=2)
    first = Training(method, OPTIM, total_steps=STEPS, device=CPU, seed=0)
    stopped = Log()
    stopped.asked = lambda step: "stop" if step == 3 else "nothing"  # type: ignore[method-assign]
    run_loop(first, batches(size_of(method)), SPARSE, stopped, validation_of(method, 2))
    resumed, rest = trained(name, every=2, state=stopped.saved[-1])
    assert stopped.scores | rest.scores == log.scores
    assert list(log.scores) == [2, 4]
    torch.testing.assert_close(resumed.state(), whole.state(), rtol=0, atol=0)
