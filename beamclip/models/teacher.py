"""The frozen teacher, which encodes images and texts to unit embeddings."""

from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.models.clip import ClipModel, ImageTower, LoadedClip, normalise_pixels
from beamclip.models.student import embeddings_and_features

Precision = Literal["fp32", "bf16"]


class ImageTeacher(nn.Module):
    """A frozen image tower: no gradients, always in eval mode.

    A method must hold it as a function (`teacher.encode_image`), not as a submodule: its weights would
    otherwise travel in every checkpoint and through DDP's broadcasts.
    """

    def __init__(self, tower: ImageTower, precision: Precision = "fp32") -> None:
        """Freeze a tower.

        Args:
            tower: frozen and cast in place, not copied.
            precision: bf16 casts a transformer as a whole (autocast would convert its weights in each call,
                and is slower than float32 on a CPU) and runs a convolutional network under autocast, which
                keeps its normalisation in float32.
        """
        super().__init__()
        self.network = tower.network.requires_grad_(False)
        self.preprocessing = tower.preprocessing
        self._convolutional = is_convolutional(self.network)
        self._autocast = precision == "bf16" and self._convolutional
        self._input_dtype = torch.float32
        if precision == "bf16" and not self._convolutional:
            self.network.to(torch.bfloat16)
            self._input_dtype = torch.bfloat16
        if self._convolutional:
            self.network.to(memory_format=torch.channels_last)
        self.eval()

    def train(self, mode: bool = True) -> "ImageTeacher":
        """Stay in eval mode: batch statistics of the student's data must not reach the teacher."""
        return super().train(False)

    def compile_network(self) -> None:
        """Have torch compile the network at its next call."""
        self.network.compile()

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode pixels, uint8 [B, 3, H, H] on the teacher's device, to float32 [B, D] of unit length.

        Raises:
            ValueError: pixels are not uint8, not [B, 3, H, W], or not square.
        """
        with self._arithmetic(pixels):
            embeddings = self.network(self._normalised(pixels))
        # CoCa's tower returns the tokens too.
        embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
        return F.normalize(embeddings.float(), dim=-1)

    @torch.no_grad()
    def encode_with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels as `encode_image` does, and return the backbone's features too, from one pass.

        Returns:
            float32 [B, D] of unit length, and float32 [B, F]: see `student.backbone_features`.

        Raises:
            ValueError: as `encode_image`.
        """
        with self._arithmetic(pixels):
            embeddings, features = embeddings_and_features(self.network, self._normalised(pixels))
        return F.normalize(embeddings.float(), dim=-1), features.float()

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise_pixels(
            pixels, self.preprocessing, dtype=self._input_dtype, channels_last=self._convolutional
        )

    def _arithmetic(self, pixels: Tensor) -> torch.autocast:
        # Set explicitly: a student's autocast around a call must not change the teacher.
        return torch.autocast(pixels.device.type, torch.bfloat16, enabled=self._autocast)


def copied_image_teacher(clip: LoadedClip, precision: Precision = "fp32") -> ImageTeacher:
    """Make a frozen copy of a model's image tower; the model itself is not changed and may train."""
    tower = clip.image_tower
    return ImageTeacher(replace(tower, network=deepcopy(tower.network)), precision)


class Teacher(nn.Module):
    """A frozen CLIP model, always in eval mode; see ImageTeacher for its image tower."""

    def __init__(self, clip: LoadedClip, precision: Precision = "fp32", *, copied: bool = True) -> None:
        """Freeze a model, or a copy of it.

        Args:
            copied: whether to leave `clip` as it is; otherwise its own modules are frozen and cast.
            precision: of the image tower. Texts are always encoded in float32: they are few, and an error in
                an anchor would last for the whole training.
        """
        super().__init__()
        model = deepcopy(clip.model) if copied else clip.model
        self.clip: ClipModel = model.requires_grad_(False)
        self.tokenizer = clip.tokenizer
        self.preprocessing = clip.preprocessing
        self.fingerprint = clip.fingerprint
        self.images = ImageTeacher(ImageTower(self.clip.visual, clip.preprocessing), precision)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode pixels as `ImageTeacher.encode_image` does."""
        return self.images.encode_image(pixels)

    @torch.no_grad()
    def encode_text(self, texts: list[str], batch_size: int = 256) -> Tensor:
        """Encode n texts, `batch_size` at a time, to float32 [n, D] of unit length on the teacher's device.

        Raises:
            ValueError: there are no texts.
        """
        if not texts:
            raise ValueError("no texts to encode")
        device = self.clip.logit_scale.device
        chunks = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        with torch.autocast(device.type, enabled=False):
            encoded = [self.clip.encode_text(self.tokenizer(chunk).to(device)).float() for chunk in chunks]
        return F.normalize(torch.cat(encoded), dim=-1)


def is_convolutional(tower: nn.Module) -> bool:
    """Whether a tower has convolutions besides the patch embedding, a transformer's only one."""
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1
