"""What the authors' release of MS-CLIP prescribes: names of tensors, and initial weights.

Source: https://github.com/Hxyou/MSCLIP (https://arxiv.org/abs/2207.12661).
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from beamclip.openclip import CLIP, CustomTextCLIP

_RELEASED = "visual.transformer"
_BLOCK = re.compile(rf"{re.escape(_RELEASED)}\.resblocks\.(\d+)\.(.+)")

_STEM_BLOCK = {
    "conv1": "main.0",
    "bn1": "main.1",
    "downsample.0": "shortcut.0",
    "downsample.1": "shortcut.1",
}
_BOTTLENECK = {
    "conv1": "main.0.0",
    "bn1": "main.0.1",
    "conv2": "main.2.0",
    "bn2": "main.2.1",
    "conv3": "main.4.0",
    "bn3": "main.4.1",
    "residual_conv": "shortcut.0",
    "residual_bn": "shortcut.1",
}
_ADAPTER = {
    "top2bottom_dw_conv.conv": "lateral.0",
    "top2bottom_dw_conv.bn": "lateral.1",
    "top2bottom_pw_conv.conv": "lateral.2",
    "bottom_dw_conv.conv": "local.0",
    "bottom_dw_conv.bn": "local.1",
    "ln_adapt": "norm",
}


def _modules() -> dict[str, str]:
    """Our name of each module of the stem and the parallel branch, by its name in the release."""
    stem, branch = f"{_RELEASED}.resblocks.0", f"{_RELEASED}.parallel_branch_v"
    adapter = f"{_RELEASED}.parallel_lateral_adapter"
    names = {
        f"{stem}.conv1": "visual.stem.0.0.0",
        f"{stem}.bn1": "visual.stem.0.0.1",
        f"{stem}.last_conv": "visual.stem.5",
        f"{branch}.0.conv": "visual.branch.0.0.0",
        f"{branch}.0.bn": "visual.branch.0.0.1",
    }
    for stage in range(4):
        for theirs, ours in _STEM_BLOCK.items():
            names[f"{stem}.resnet_stage.conv_{stage}.{theirs}"] = f"visual.stem.{stage + 1}.{ours}"
        for theirs, ours in _BOTTLENECK.items():
            released = f"{branch}.{stage + 1}.resnet_stage.conv_0.{theirs}"
            names[released] = f"visual.branch.{stage + 1}.{ours}"
    for stage in range(5):
        for theirs, ours in _ADAPTER.items():
            names[f"{adapter}.{stage}.{theirs}"] = f"visual.adapters.{stage}.{ours}"
    return names


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of the authors' MS-CLIP-S."""
    return any(name.startswith(f"{_RELEASED}.parallel_") for name in state)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the authors' MS-CLIP-S as our image tower names them.

    The text tower keeps its names, which are OpenAI's; so does what is unknown.
    """
    modules = _modules()
    return {_own_name(name, modules): value for name, value in state.items()}


def _own_name(name: str, modules: Mapping[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    if module in modules:
        return f"{modules[module]}.{tensor}"
    block = _BLOCK.fullmatch(name)
    if block is None or block[1] == "0":
        return name
    # Their stem is a block of the transformer, ours stands before it.
    return f"{_RELEASED}.resblocks.{int(block[1]) - 1}.{block[2]}"


def initialise(model: nn.Module) -> None:
    """Draw weights as the release does, from the global random state.

    Linear and convolutional layers: normal, standard deviation 0.02, no bias; queries, keys and values:
    Xavier's uniform; the table of tokens: standard normal; positions and projection of texts: normal, 0.02.
    What the release draws as open_clip does is left alone: positions, class token and projection of images.

    Args:
        model: a whole CLIP, or an image tower.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    if isinstance(model, CLIP | CustomTextCLIP):
        text = getattr(model, "text", model)
        nn.init.trunc_normal_(text.positional_embedding, std=0.02)
        nn.init.trunc_normal_(text.text_projection, std=0.02)
