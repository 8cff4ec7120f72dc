"""Checkpoints of self-supervised training, as its programs write them, become the weights of a backbone.

Each layout is that of the program named: facebookresearch/{moco, moco-v3, swav, dino, barlowtwins, vicreg},
jacobswan1/SEED, UMBCvision/CompRess.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.models.weights import load_backbone

State = dict[str, Tensor]
NARROW = {"channels": (8, 8, 16, 16)}


def resnet(seed: int = 0, name: str = "resnet18") -> nn.Module:
    """A ResNet of torchvision's names, few channels and its own statistics."""
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=0, **NARROW).train()
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32))
    return network


def vit(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0, **options)


def under(prefix: str, *parts: nn.Module | State) -> State:
    """The tensors of the parts, all under one prefix."""
    states = [part.state_dict() if isinstance(part, nn.Module) else part for part in parts]
    return {prefix + name: tensor for state in states for name, tensor in state.items()}


def head(name: str) -> State:
    return {f"{name}.0.weight": torch.randn(16, 16), f"{name}.2.weight": torch.randn(8, 16)}


OPTIMISER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
QUEUE = {"queue": torch.randn(8, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def moco_v2(meant: nn.Module, twin: nn.Module) -> dict[str, Any]:
    state = under("module.encoder_q.", meant, head("fc")) | under("module.encoder_k.", twin, head("fc"))
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": state | under("module.", QUEUE),
        "optimizer": OPTIMISER,
    }


def moco_v3(meant: nn.Module, twin: nn.Module) -> dict[str, Any]:
    projector = "fc" if isinstance(meant, timm.models.ResNet) else "head"
    state = under("module.momentum_encoder.", twin, head(projector))
    state |= under("module.base_encoder.", meant, head(projector)) | under("module.predictor.", head("0"))
    content = {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": OPTIMISER}
    return {**content, "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 5}}


def swav(meant: nn.Module, _: nn.Module) -> State:
    prototypes = {"prototypes.weight": torch.randn(30, 8)}
    return under("module.", meant, head("projection_head"), prototypes)


def swav_run(meant: nn.Module, twin: nn.Module) -> dict[str, Any]:
    return {"epoch": 400, "state_dict": swav(meant, twin), "optimizer": OPTIMISER}


def dino(meant: nn.Module, twin: nn.Module, of_teacher: str = "") -> dict[str, Any]:
    heads = {"mlp.0.weight": torch.randn(4, 4), "last_layer.weight_g": torch.ones(4, 1)}
    return {
        "student": under("module.backbone.", twin) | under("module.head.", heads),
        "teacher": under(f"{of_teacher}backbone.", meant) | under(f"{of_teacher}head.", heads),
        "optimizer": OPTIMISER,
        "epoch": 800,
        "args": Namespace(arch="vit_small", lr=5e-4, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 4)},
        "fp16_scaler": {"scale": 2.0},
    }


def barlow_twins(meant: nn.Module, _: nn.Module) -> dict[str, Any]:
    statistics = {"bn.running_mean": torch.zeros(8), "bn.running_var": torch.ones(8)}
    state = under("module.backbone.", meant) | under("module.", head("projector"), statistics)
    return {"epoch": 1000, "model": state, "optimizer": OPTIMISER}


def seed(meant: nn.Module, _: nn.Module) -> dict[str, Any]:
    teacher = resnet(7, "resnet50")
    state = under("module.student.", meant, head("fc")) | under("module.teacher.", teacher, head("fc"))
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": state | under("module.", QUEUE),
        "optimizer": OPTIMISER,
    }


def compress(meant: nn.Module, _: nn.Module) -> dict[str, Any]:
    options = Namespace(student_arch="resnet18", lr=0.01)
    return {"opt": options, "model": under("module.", meant), "optimizer": OPTIMISER, "epoch": 130}


def solo_learn(meant: nn.Module, twin: nn.Module) -> dict[str, Any]:
    return {"state_dict": under("momentum_backbone.", twin) | under("backbone.", meant)}


Layout = Callable[[nn.Module, nn.Module], dict[str, Any]]
RESNETS: list[Layout] = [
    moco_v2,
    moco_v3,
    swav,
    swav_run,
    lambda meant, twin: dino(meant, twin, of_teacher="module."),
    barlow_twins,
    seed,
    compress,
    solo_learn,
    # What VICReg, Barlow Twins and SimCLR publish: torchvision's network without its classifier.
    lambda meant, _: under("", meant),
]
VITS: list[Layout] = [dino, lambda meant, _: under("", meant)]


def check_that_all_lands(
    trunk: nn.Module, meant: nn.Module, content: Any, file: Path, **options: Any
) -> None:
    torch.save(content, file, **options)
    load_backbone(trunk, file, "the student")
    expected = meant.state_dict()
    assert trunk.state_dict().keys() == expected.keys()
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("layout", range(len(RESNETS)))
def test_every_tensor_of_a_published_resnet_lands(layout: int, tmp_path: Path) -> None:
    meant, twin = resnet(1), resnet(2)
    check_that_all_lands(resnet(3), meant, RESNETS[layout](meant, twin), tmp_path / "ssl.pth.tar")


@pytest.mark.parametrize("layout", range(len(VITS)))
def test_every_tensor_of_a_published_vit_lands(layout: int, tmp_path: Path) -> None:
    meant, twin = vit(1), vit(2)
    check_that_all_lands(vit(3), meant, VITS[layout](meant, twin), tmp_path / "ssl.pth")


def test_a_file_in_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    meant = resnet(1)
    content = moco_v2(meant, resnet(2))
    old = {"_use_new_zipfile_serialization": False}
    check_that_all_lands(resnet(3), meant, content, tmp_path / "moco.pth.tar", **old)


def test_a_vit_of_moco_v3_needs_a_student_with_as_many_heads(tmp_path: Path) -> None:
    twelve = {"embed_dim": 96, "num_heads": 12}
    meant = vit(1, **twelve)
    content = moco_v3(meant, vit(2, **twelve))
    check_that_all_lands(vit(3, **twelve), meant, content, tmp_path / "vit.pth.tar")
    with pytest.raises(InputError, match="a ViT of MoCo v3 has 12 heads, and vit_small has 6"):
        load_backbone(vit(3, embed_dim=96, num_heads=6), tmp_path / "vit.pth.tar", "vit_small")


def test_two_encoders_of_equal_rights_are_refused(tmp_path: Path) -> None:
    torch.save(under("left.", resnet(1)) | under("right.", resnet(2)), tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"two\.pt: holds 2 backbones, under 'left\.', 'right\.'"):
        load_backbone(resnet(3), tmp_path / "two.pt", "resnet18")


def test_positions_of_another_image_size_are_named_with_their_shapes(tmp_path: Path) -> None:
    torch.save(vit(1, img_size=96).state_dict(), tmp_path / "dino.pth")
    message = r"1 of \d+ tensors differ in shape \(pos_embed is \[1, 37, 64\] in the file, \[1, 101, 64\] in"
    with pytest.raises(InputError, match=message):
        load_backbone(vit(2), tmp_path / "dino.pth", "test_vit")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_of_timm_and_torchvision_have_the_same_tensors(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.get_model(name), timm.create_model(name)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (theirs, ours)]
    assert shapes[0] == shapes[1]
