"""The methods: modules that turn a batch into (loss, metrics).

A method registers only what it trains, so that its state dict, which every checkpoint holds, has no
teacher in it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.data.stream import Batch
from beamclip.data.transforms import AugmentConfig, augment
from beamclip.losses.contrastive import clip_loss
from beamclip.losses.csm import CsmConfig, csm_loss
from beamclip.losses.feature import FeatureConfig, feature_loss
from beamclip.models.clip import LoadedClip, normalise_pixels
from beamclip.prompts.anchors import Anchors

Metrics = dict[str, Tensor]
MAX_LOGIT_SCALE = 100.0


class Distillation(nn.Module):
    """Transfer from a teacher's image tower, by similarities to text anchors (BeamCLIP, arXiv 2301.02903).

    Images are all it needs: the anchors stand for the text side.
    """

    def __init__(
        self,
        student: LoadedClip,
        embed: Callable[[Tensor], Tensor],
        anchors: Anchors,
        *,
        csm: CsmConfig,
        feature: FeatureConfig,
        augmentation: AugmentConfig,
    ) -> None:
        """Args:
        embed: the frozen teacher, uint8 [B, 3, H, W] -> unit float32 [B, D]; no submodule, but a function.
        """
        super().__init__()
        self.visual = student.model.visual
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.embeddings, persistent=False)
        self.student = student.preprocessing
        # A deep copy, such as the moving average of the weights, takes a bound method's object along.
        self.embed = lambda pixels: embed(pixels)
        self.csm = csm
        self.feature = feature
        self.augmentation = augmentation

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The weighted loss of one batch and its terms, each a scalar tensor."""
        pixels = augment(batch.pixels, batch.draws, self.augmentation)
        with torch.no_grad():
            teacher = self.embed(pixels)
        student = F.normalize(self.visual(normalise_pixels(pixels, self.student)).float(), dim=-1)
        metrics = {"teacher_cosine": (student * teacher).sum(dim=-1).mean()}
        terms = []
        if self.csm.csm_weight:
            metrics["loss/csm"] = csm_loss(
                student,
                teacher,
                self.anchors,
                tau_student=self.csm.tau_student,
                tau_teacher=self.csm.tau_teacher,
                chunk_size=self.csm.anchor_chunk,
            )
            terms.append(self.csm.csm_weight * metrics["loss/csm"])
        if self.feature.feature_weight:
            metrics["loss/feature"] = feature_loss(student, teacher, self.feature.feature_kind)
            terms.append(self.feature.feature_weight * metrics["loss/feature"])
        return torch.stack(terms).sum(), {name: value.detach() for name, value in metrics.items()}


class ImageTextPretraining(nn.Module):
    """Contrastive training of an image and a text tower from captions (CLIP, arXiv 2103.00020)."""

    def __init__(self, clip: LoadedClip, *, augmentation: AugmentConfig) -> None:
        super().__init__()
        self.clip = clip.model
        self.preprocessing = clip.preprocessing
        self.tokenizer = clip.tokenizer
        self.augmentation = augmentation

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss over the global batch, as seen from this rank's rows, and its scale."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
        pixels = augment(batch.pixels, batch.draws, self.augmentation)
        image = self.clip.encode_image(normalise_pixels(pixels, self.preprocessing))
        text = self.clip.encode_text(self.tokenizer(batch.captions).to(pixels.device))
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        scale = self.clip.logit_scale.exp()
        loss = clip_loss(image, text, scale)
        return loss, {"loss/clip": loss.detach(), "logit_scale": scale.detach()}
