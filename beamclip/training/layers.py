"""The layers of networks, counted from their outputs: for learning rates that fall towards the input."""

import re
from collections.abc import Iterator

from timm.models import group_parameters
from torch import nn

_BLOCK = re.compile(r"(.*\bresblocks)\.(\d+)\.")
"""A parameter of a transformer's block: the blocks, and its number."""
_INPUT = ("positional_embedding", "class_embedding", "token_embedding", "conv1", "ln_pre", "stem", "branch")
"""Names of what lies below a transformer's blocks."""


def layers_above(module: nn.Module) -> dict[str, int]:
    """Return how many layers lie above each parameter, in its own network.

    The layers of a timm network are those that timm groups for this purpose; those of open_clip's
    transformers and of MS-CLIP are their blocks. What belongs to none, such as a projection, is on top.

    Args:
        module: a tower, a model or a method that holds them.
    """
    above = {name: 0 for name, _ in module.named_parameters()}
    of_timm: dict[str, int] = {}
    for prefix, numbers in _timm_layers(module):
        layers = max(numbers.values()) + 1
        of_timm |= {f"{prefix}{name}": layers - number for name, number in numbers.items()}
    blocks = _block_counts(above)
    for name in above:
        if match := _BLOCK.match(name):
            above[name] = blocks[match[1]] - int(match[2])
        elif any(part in name for part in _INPUT) and (nearest := _blocks_of(name, blocks)):
            above[name] = blocks[nearest] + 1
    return above | of_timm


def _timm_layers(module: nn.Module) -> Iterator[tuple[str, dict[str, int]]]:
    for name, part in module.named_modules():
        if hasattr(part, "group_matcher"):
            numbers = group_parameters(part, part.group_matcher(), reverse=True)
            yield f"{name}." if name else "", numbers


def _block_counts(names: dict[str, int]) -> dict[str, int]:
    """Path of the blocks of each transformer -> their number."""
    counts: dict[str, int] = {}
    for name in names:
        if match := _BLOCK.match(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def _blocks_of(name: str, counts: dict[str, int]) -> str | None:
    """Path of the blocks of the transformer that a parameter belongs to: those of its tower."""
    tower = [path for path in counts if _in_image_tower(path) == _in_image_tower(name)]

    def shared(path: str) -> int:
        return len([1 for a, b in zip(path.split("."), name.split("."), strict=False) if a == b])

    return max(tower, key=shared, default=None)


def _in_image_tower(name: str) -> bool:
    return "visual" in name.split(".")
