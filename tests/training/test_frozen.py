"""Frozen layers and locked towers keep weights and statistics bit for bit, while the rest trains."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import all_good
from torch import Tensor, nn

from beamclip.commands.frozen_towers import check_frozen_towers
from beamclip.commands.main import main
from beamclip.commands.options import PretrainConfig
from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.shards import Shard
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.errors import InputError
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import new_clip, with_logit_bias
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.prompts.anchors import Anchors
from beamclip.training.batch_norms import synchronised
from beamclip.training.checkpoint import CheckpointError
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.layers import layers_above
from beamclip.training.loop import Training
from beamclip.training.pretraining import ImageTextPretraining

OPTIM = OptimConfig(lr=1e-2, precision="fp32", warmup=0.0, ema_decay=0.9)
AUGMENTATION = Augmentation()


def photos(step: int, size: int, count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    draws = torch.rand(count, AUGMENT_DRAWS, generator=generator)
    return Batch(pixels, draws, [f"thing {step} {row}" for row in range(count)], **all_good(count))


def distillation(tiny_config: Path, frozen_layers: int, student: str = "test_resnet") -> Distillation:
    teacher = new_clip(tiny_config, seed=0)
    embeddings = nn.functional.normalize(
        torch.randn(5, 16, generator=torch.Generator().manual_seed(2)), dim=1
    )
    return Distillation(
        build_student(StudentConfig(student=student), teacher, seed=1).image_tower,
        [lambda pixels: nn.functional.normalize(teacher.model.encode_image(pixels / 255), dim=1).detach()],
        [Anchors(embeddings, torch.arange(5))],
        csm=CsmConfig(),
        feature=FeatureConfig(feature_weight=1.0),
        augmentation=AUGMENTATION,
        frozen_layers=frozen_layers,
    )


def pretraining(frozen_layers: int = 0, locked: tuple[str, ...] = ()) -> ImageTextPretraining:
    clip = new_clip("nano-resnet10t", seed=0)
    return ImageTextPretraining(clip, augmentation=AUGMENTATION, frozen_layers=frozen_layers, locked=locked)  # type: ignore[arg-type]


def training_of(method: nn.Module, config: OptimConfig = OPTIM) -> Training:
    method.train()
    return Training(method, config, total_steps=8, device=torch.device("cpu"), seed=0)


def unchanged_after_steps(training: Training, size: int, parts: int = 1) -> set[str]:
    """Names of the tensors of the state that three steps leave as they are, in the average, too."""
    before = {name: tensor.clone() for name, tensor in training.bare.state_dict().items()}
    for step in range(3):
        batch = photos(step, size)
        rows = torch.arange(6).chunk(parts)
        pick = [batch.with_tensors(lambda tensor, rows=rows: tensor[rows]) for rows in rows]
        own = [replace(part, captions=[batch.captions[r] for r in rows[k]]) for k, part in enumerate(pick)]
        training.advance([replace(part, good=len(part.captions)) for part in own])
    state = training.state()
    return {
        name
        for name, tensor in before.items()
        if all(torch.equal(tensor, after[name]) for after in (state["method"], state["ema"]))
    }


def of_layers(tower: nn.Module, prefix: str, count: int) -> set[str]:
    """Names of parameters and statistics in the lowest layers of a tower, by its parameters' layers."""
    above = layers_above(tower)
    lowest = sorted(set(above.values()), reverse=True)[:count]
    names = {name for name in above if above[name] in lowest}
    modules = {name.rpartition(".")[0] for name in names}
    buffers = {name for name, _ in tower.named_buffers() if name.rpartition(".")[0] in modules}
    return {prefix + name for name in names | buffers}


@pytest.mark.parametrize("student", ["test_resnet", "test_efficientnet", "test_vit"])
def test_the_lowest_layers_of_a_student_keep_weights_and_statistics(tiny_config: Path, student: str) -> None:
    method = distillation(tiny_config, 2, student)
    size = method.student.size
    frozen = of_layers(method.visual, "visual.", 2)
    assert 0 < len(frozen) < len(method.state_dict())
    assert unchanged_after_steps(training_of(method), size) == frozen


@pytest.mark.parametrize("parts", [1, 3])
def test_the_lowest_layers_of_a_trained_clip_keep_theirs_with_micro_batches_too(parts: int) -> None:
    method = pretraining(frozen_layers=3)
    frozen = of_layers(method.clip.visual, "clip.visual.", 3)
    found = unchanged_after_steps(training_of(method), method.preprocessing.size, parts)
    assert {name for name in found if name.startswith("clip.visual.")} == frozen


def test_a_locked_tower_stays_and_the_other_one_learns() -> None:
    for locked, other in (("image", "clip.transformer"), ("text", "clip.visual")):
        method = pretraining(locked=(locked,))
        names = {name for name in method.state_dict() if "logit" not in name}
        towers = {name: "image" if name.startswith("clip.visual.") else "text" for name in names}
        found = unchanged_after_steps(training_of(method), method.preprocessing.size)
        assert {name for name in names if towers[name] == locked} <= found
        assert not [name for name in found if name.startswith(other) and name.endswith("weight")]
        assert "clip.logit_scale" not in found


def test_a_logit_bias_learns_only_by_the_loss_that_reads_it() -> None:
    for objective, learns in (("clip", False), ("siglip", True)):
        clip = with_logit_bias(new_clip("nano-resnet10t", seed=0), -10.0)
        method = ImageTextPretraining(clip, augmentation=AUGMENTATION, objective=objective)  # type: ignore[arg-type]
        # DDP waits for the gradient of each parameter that requires one.
        assert method.clip.logit_bias.requires_grad is learns


def test_a_step_has_the_gradients_of_an_unfrozen_one_in_the_layers_above(tiny_config: Path) -> None:
    def gradients(config: OptimConfig) -> dict[str, Tensor]:
        method = distillation(tiny_config, 2, "test_vit")
        training = training_of(method, config)
        found: dict[str, Tensor] = {}
        training.optimizer.register_step_pre_hook(
            lambda *_: found.update(
                {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            )
        )
        training.advance([photos(0, method.student.size)])
        return found

    plain, recomputed = (gradients(replace(OPTIM, grad_checkpointing=on)) for on in (False, True))
    assert plain.keys() == recomputed.keys()
    assert not [name for name in plain if "patch_embed" in name or "blocks.0" in name]
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_modes_survive_scoring_and_the_conversion_of_batch_norms(tiny_config: Path) -> None:
    method = distillation(tiny_config, 2)
    norms = [method.get_submodule(name) for name in method.kept_in_eval]
    assert norms
    synchronised(method.train())
    assert {method.get_submodule(name).training for name in method.kept_in_eval} == {False}
    method.eval()
    method.train()
    assert {method.get_submodule(name).training for name in method.kept_in_eval} == {False}
    assert method.training


def test_a_resumed_run_goes_on_and_one_that_freezes_others_is_refused(tiny_config: Path) -> None:
    first = training_of(distillation(tiny_config, 2))
    first.advance([photos(0, 32)])
    second = training_of(distillation(tiny_config, 2))
    second.load(deepcopy(first.state()))
    for training in (first, second):
        training.advance([photos(1, 32)])
    torch.testing.assert_close(second.state(), first.state(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="step 2: the checkpoint is of a run that trains other tensors"):
        training_of(distillation(tiny_config, 3)).load(first.state())


def test_the_layers_of_a_tower_are_the_same_within_its_model() -> None:
    for name in ("nano-resnet10t", "tiny-vit", "tiny-msclip-s"):
        model = new_clip(name, seed=0).model
        within = {
            each.removeprefix("visual."): above
            for each, above in layers_above(model).items()
            if each.startswith("visual.")
        }
        assert within == layers_above(model.visual)


def test_what_cannot_be_frozen_is_refused() -> None:
    shared = new_clip("tiny-msclip", seed=0)
    for options in ({"lock_image": True}, {"lock_text": True}, {"optim": OptimConfig(frozen_layers=1)}):
        with pytest.raises(InputError, match="the towers of tiny-msclip share layers"):
            check_frozen_towers(PretrainConfig(**options), shared)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--frozen-layers 8: .* has 8 layers, .*Give 7 or less"):
        check_frozen_towers(PretrainConfig(optim=OptimConfig(frozen_layers=8)), new_clip("tiny-vit", seed=0))


def test_commands_refuse_to_freeze_everything(
    shards: list[Shard], capsys: pytest.CaptureFixture[str], tiny_config: Path
) -> None:
    words = ["pretrain", "--data", str(Path(shards[0].path).parent), "--num-workers", "0", "--dry-run"]
    assert main([*words, "--lock-image", "--lock-text"]) == 2
    assert "nothing is left to learn but the logit scale" in capsys.readouterr().err
    assert main([*words, "--lock-image", "--frozen-layers", "1"]) == 2
    assert "--frozen-layers has no effect with --lock-image" in capsys.readouterr().err
    assert main([*words, "--model", str(tiny_config), "--frozen-layers", "4"]) == 2
    assert "has 4 layers, and the one on top has to learn. Give 3 or less." in capsys.readouterr().err
