"""MS-CLIP and MS-CLIP-S: one transformer for images and texts (https://arxiv.org/abs/2207.12661).

MS-CLIP is an open_clip model whose image and text transformers share the attention and feed-forward layers
of each pair of blocks; each tower keeps its own embeddings, layer norms and projection.

MS-CLIP-S does not share the first block of each tower, replaces the image tower's by a convolutional stem,
and merges the features of a second, parallel stack of convolutions into the image tokens.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beamclip.errors import InputError
from beamclip.models.msclip_release import initialise
from beamclip.openclip import CLIP, CustomTextCLIP, LayerNorm, QuickGELU, Transformer
from beamclip.spelling import or_list

STEM_REDUCTION = 16
"""Transformer width over the width of a stack's first convolution; each of the four others doubles it."""

LATERAL_BLOCKS = (2, 4, 6, 8, 10)
"""In a transformer of 12 blocks, those before which the five stages of the parallel branch are merged."""

BATCH_NORM_EPS = 1e-5
"""PyTorch's default."""

_KEYS = ("specialised", "lateral_blocks", "shared", "branch_eps", "init")
_INITS = ("open_clip", "release")

PARTS = {"attention": ("attn",), "feed_forward": ("mlp",), "norms": ("ln_1", "ln_2")}
"""What the blocks of both towers can share, with the names of open_clip's modules."""
SHARED = ("attention", "feed_forward")
"""What they share by default: what MS-CLIP and MS-CLIP-S do."""


def build_msclip(
    embed_dim: int,
    vision_cfg: dict[str, Any],
    text_cfg: dict[str, Any],
    msclip: dict[str, Any],
    *,
    custom_text: bool = True,
    **rest: Any,
) -> CLIP | CustomTextCLIP:
    """Build the model of a config with a key "msclip".

    Args:
        embed_dim, vision_cfg, text_cfg, rest: as open_clip's classes take them.
        msclip: specialised (bool, false) makes it MS-CLIP-S; lateral_blocks are the blocks before which the
            stages of the parallel branch are merged, by default those of a transformer of 12; shared (true)
            is a list of PARTS, true for SHARED, or false if the text tower is another model's, as a
            student's is; branch_eps (1e-5) is the epsilon of batch norm in the parallel branch's bottlenecks;
            init is "open_clip" (the default) or "release", for initial weights like those of the authors'
            code. Layer norms take the norm_kwargs of vision_cfg and text_cfg.
        custom_text: whether a text tower that is not shared is a module of its own (open_clip's custom_text).

    Raises:
        InputError: the towers differ in width, heads or layers, the stem cannot make patches of this size, or
            a key of msclip is unknown or out of range.
    """
    _check_image_tower(vision_cfg, msclip)
    shared = _shared_modules(msclip)
    if shared:
        _check_text_tower(vision_cfg, text_cfg)
    model_class = CustomTextCLIP if shared or custom_text else CLIP
    model = model_class(embed_dim, vision_cfg, text_cfg, **rest)
    if msclip.get("specialised", False):
        model.visual = SpecialisedVision(
            embed_dim,
            vision_cfg,
            lateral_blocks=msclip.get("lateral_blocks", LATERAL_BLOCKS),
            quick_gelu=rest.get("quick_gelu", False),
            branch_eps=msclip.get("branch_eps", BATCH_NORM_EPS),
        )
    if shared:
        of_image = model.visual.transformer.resblocks
        of_text = list(model.text.transformer.resblocks)[-len(of_image) :]
        for image_block, text_block in zip(of_image, of_text, strict=True):
            # Share the text tower's layers: open_clip initialises only these as CLIP does.
            for name in shared:
                setattr(image_block, name, getattr(text_block, name))
    if msclip.get("init") == "release":
        initialise(model if shared else model.visual)
    return model


def split_msclip(model_cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a model's config into what open_clip reads and what stands beside that in the file, for us.

    MS-CLIP computes the same as two towers with equal weights, so open_clip can load it as such. It has no
    image tower for MS-CLIP-S; there the key stays in the config, so that open_clip refuses it.
    """
    if "msclip" not in model_cfg or model_cfg["msclip"].get("specialised", False):
        return model_cfg, {}
    plain = {key: value for key, value in model_cfg.items() if key != "msclip"}
    return plain, {"msclip": model_cfg["msclip"]}


def _heads(vision_cfg: dict[str, Any]) -> int:
    return int(vision_cfg["width"]) // int(vision_cfg.get("head_width", 64))


def _shared_modules(msclip: dict[str, Any]) -> list[str]:
    """Return the names of a block's modules that both towers use."""
    shared = msclip.get("shared", True)
    if isinstance(shared, bool):
        shared = SHARED if shared else ()
    elif not shared or not set(shared) <= set(PARTS):
        raise InputError(
            f"msclip: shared is {shared!r}. Give true, false, or a list of {or_list(tuple(PARTS))}."
        )
    return [name for part in shared for name in PARTS[part]]


def _check_text_tower(vision_cfg: dict[str, Any], text_cfg: dict[str, Any]) -> None:
    for name in ("width", "layers"):
        if vision_cfg.get(name) != text_cfg.get(name):
            raise InputError(
                f"msclip: vision_cfg.{name} is {vision_cfg.get(name)}, text_cfg.{name} is "
                f"{text_cfg.get(name)}. One transformer serves both towers: give them the same."
            )
    heads = _heads(vision_cfg)
    if heads != text_cfg["heads"]:
        raise InputError(
            f"msclip: vision_cfg makes {heads} heads (width / head_width), text_cfg has {text_cfg['heads']}. "
            "One transformer serves both towers: give them the same."
        )


def _check_image_tower(vision_cfg: dict[str, Any], msclip: dict[str, Any]) -> None:
    unknown = sorted(set(msclip) - set(_KEYS))
    if unknown:
        raise InputError(f"msclip: unknown {', '.join(unknown)}. It takes {', '.join(_KEYS)}.")
    if msclip.get("init", _INITS[0]) not in _INITS:
        raise InputError(f"msclip: init is {msclip['init']!r}. Give {or_list(_INITS)}.")
    if not msclip.get("specialised", False):
        return
    patch, size = vision_cfg["patch_size"], vision_cfg["image_size"]
    if patch not in (2, 4, 8, 16, 32) or size % patch:
        raise InputError(
            f"msclip: image_size {size} with patch_size {patch}. The stem halves the image up to five times: "
            "give a patch_size of 2, 4, 8, 16 or 32 that divides the image_size."
        )
    if vision_cfg["width"] % STEM_REDUCTION:
        raise InputError(f"msclip: width {vision_cfg['width']}. Give a multiple of {STEM_REDUCTION}.")
    blocks = list(msclip.get("lateral_blocks", LATERAL_BLOCKS))
    if (
        blocks != sorted(set(blocks))
        or len(blocks) > 5
        or not all(0 < b < vision_cfg["layers"] for b in blocks)
    ):
        raise InputError(
            f"msclip: lateral_blocks {blocks}. Give up to five, ascending, 1 to {vision_cfg['layers'] - 1}."
        )


class SpecialisedVision(nn.Module):
    """The image tower of MS-CLIP-S: stem, transformer without its first block, parallel branch."""

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        *,
        lateral_blocks: Sequence[int],
        quick_gelu: bool,
        branch_eps: float = BATCH_NORM_EPS,
    ) -> None:
        """Build the tower with random weights.

        Args:
            vision_cfg: image_size, patch_size, width, head_width, layers and norm_kwargs, as open_clip reads
                them; the stem takes the place of the first layer.
            lateral_blocks: blocks before which the stages of the parallel branch are merged.
            branch_eps: epsilon of batch norm in the parallel branch's bottlenecks.
        """
        super().__init__()
        norm_layer = partial(LayerNorm, **(vision_cfg.get("norm_kwargs") or {}))
        image_size, patch_size, width = (vision_cfg[key] for key in ("image_size", "patch_size", "width"))
        self.image_size = (image_size, image_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (image_size // patch_size,) * 2
        self.output_dim = embed_dim
        self.lateral_blocks = tuple(lateral_blocks)
        self.grad_checkpointing = False
        strides = _strides(patch_size)
        widths = [width // STEM_REDUCTION * 2**stage for stage in range(5)]
        self.stem = nn.Sequential(
            _entrance(widths[0], strides[0]),
            *(
                _StemBlock(before, after, stride)
                for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False)
            ),
            nn.Conv2d(width, width, 1, bias=False),
        )
        used = len(self.lateral_blocks)
        stages = [_entrance(widths[0], strides[0])]
        for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False):
            stages.append(_Bottleneck(before, after, stride, branch_eps))
        self.branch = nn.ModuleList(stages[:used])
        self.adapters = nn.ModuleList(
            _Adapter(widths[stage], patch_size // math.prod(strides[: stage + 1]), norm_layer(width))
            for stage in range(used)
        )
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        tokens = self.grid_size[0] * self.grid_size[1] + 1
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = norm_layer(width)
        self.transformer = Transformer(
            width,
            vision_cfg["layers"] - 1,
            _heads(vision_cfg),
            act_layer=QuickGELU if quick_gelu else nn.GELU,
            norm_layer=norm_layer,
        )
        self.ln_post = norm_layer(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def set_grad_checkpointing(self, enable: bool = True, impl: str = "inline") -> None:
        """Recompute each block's activations in the backward pass; `impl` is open_clip's and not used."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images [B, 3, H, W], sides multiples of the patch size, to [B, embed_dim]."""
        patches = self.stem(images)
        grid = (patches.shape[2], patches.shape[3])
        first = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.ln_pre(tokens + self._positions(grid).to(tokens.dtype))
        stage, features = 0, images
        for index, block in enumerate(self.transformer.resblocks, start=1):
            if index in self.lateral_blocks:
                features = self.branch[stage](features)
                tokens = self.adapters[stage](tokens, features, grid)
                stage += 1
            run = partial(checkpoint, block, use_reentrant=False) if self._recomputing else block
            tokens = run(tokens)
        return self.ln_post(tokens[:, 0]) @ self.proj

    @property
    def _recomputing(self) -> bool:
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of the class token and a grid, interpolated unless the grid is the trained one."""
        if grid == self.grid_size:
            return self.positional_embedding
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        planes = rest.T.reshape(1, -1, *self.grid_size)
        resized = F.interpolate(planes, size=grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([first, resized.flatten(2)[0].T])


class _StemBlock(nn.Module):
    """ReLU(BN(conv3x3) + BN(conv1x1))."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.main = _conv_norm(before, after, 3, stride)
        self.shortcut = _conv_norm(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        return F.relu(self.main(x) + self.shortcut(x))


class _Bottleneck(nn.Module):
    """A residual bottleneck whose middle has half the width of its output."""

    def __init__(self, before: int, after: int, stride: int, eps: float) -> None:
        super().__init__()
        middle = after // 2
        self.main = nn.Sequential(
            _conv_norm(before, middle, 1, 1, eps),
            nn.ReLU(),
            _conv_norm(middle, middle, 3, stride, eps),
            nn.ReLU(),
            _conv_norm(middle, after, 1, 1, eps),
        )
        self.shortcut = _conv_norm(before, after, 1, stride, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        return F.relu(self.main(x) + self.shortcut(x))


class _Adapter(nn.Module):
    """Merges a stage of the parallel branch into the image tokens."""

    def __init__(self, channels: int, reduction: int, norm: LayerNorm) -> None:
        """Build the layers.

        Args:
            channels: width of the stage's features.
            reduction: side of the stage's features over that of the token grid.
            norm: the last layer, as wide as the tokens.
        """
        super().__init__()
        (width,) = norm.normalized_shape
        self.lateral = nn.Sequential(
            nn.Conv2d(channels, channels, reduction, stride=reduction, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 1, bias=False),
        )
        self.local = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
        )
        self.norm = norm

    def forward(self, tokens: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [B, 1 + h * w, width], features [B, channels, h * reduction, w * reduction] -> tokens."""
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        # The release doubles the class token here; the norm divides that out.
        merged = self.local(patches) + self.lateral(features)
        return self.norm(torch.cat([tokens[:, :1], merged.flatten(2).transpose(1, 2)], dim=1))


def _strides(patch_size: int) -> list[int]:
    """Strides of a stack's five convolutions: 2 until the patch size is reached, then 1."""
    halvings = int(math.log2(patch_size))
    return [2] * halvings + [1] * (5 - halvings)


def _entrance(width: int, stride: int) -> nn.Module:
    return nn.Sequential(_conv_norm(3, width, 3, stride), nn.ReLU())


def _conv_norm(before: int, after: int, kernel: int, stride: int, eps: float = BATCH_NORM_EPS) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after, eps=eps),
    )
