"""The method of pre-training: a module that turns a batch of captioned images into (loss, metrics).

It registers only the networks that it trains, and their moving average if it learns from one: every
checkpoint holds its state dict.
"""

import math
from collections.abc import Collection
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import augment
from beamclip.losses.config import Objective, PsdConfig
from beamclip.losses.contrastive import GlobalRows, clip_loss
from beamclip.losses.psd import PsdStep, psd_loss, psd_share
from beamclip.losses.sigmoid import INITIAL_BIAS, INITIAL_SCALE, sigmoid_loss
from beamclip.models.clip import LoadedClip, normalise_pixels
from beamclip.training.frozen import Tower, freeze_layers, lock_tower
from beamclip.training.loop import EmbeddedBatch

Metrics = dict[str, Tensor]
MAX_LOGIT_SCALE = 100.0


def initial_logits(objective: Objective) -> dict[str, float]:
    """Return the entries of a new model's config that set the initial logit scale and bias, if needed."""
    if objective == "siglip":
        return {"init_logit_scale": math.log(INITIAL_SCALE), "init_logit_bias": INITIAL_BIAS}
    return {}


class ImageTextPretraining(nn.Module):
    """Contrastive training of an image and a text tower from captions."""

    compares_samples = True

    def __init__(
        self,
        clip: LoadedClip,
        *,
        augmentation: Augmentation,
        objective: Objective = "clip",
        psd: PsdConfig | None = None,
        seed: int = 0,
        frozen_layers: int = 0,
        locked: Collection[Tower] = (),
    ) -> None:
        """Register the towers, and their moving average if psd learns from one.

        Args:
            clip: its config needs an init_logit_bias if the objective is siglip.
            psd: options of objective psd; None for the defaults.
            seed: decides, together with the step, which rows are self-distilled.
            frozen_layers: of the image tower, the lowest ones; they keep their weights.
            locked: towers that keep their weights.
        """
        super().__init__()
        self.clip = clip.model
        self.preprocessing = clip.preprocessing
        self.tokenizer = clip.tokenizer
        self.augmentation = augmentation
        self.objective = objective
        self.psd = psd or PsdConfig()
        self.seed = seed
        self.psd_step = PsdStep(share=0.0, row_seed=0, config=self.psd)
        if objective != "siglip" and self.clip.logit_bias is not None:
            # DDP waits for the gradient of every parameter, and this one gets none.
            self.clip.logit_bias.requires_grad_(False)
        names = [f"visual.{name}" for name in freeze_layers(self.clip.visual, frozen_layers)]
        names += [name for tower in locked for name in lock_tower(self.clip, tower)]
        self.kept_in_eval = [f"clip.{name}" for name in names]
        self.average: AveragedModel | None = None
        if objective == "psd" and self.psd.psd_target == "ema":
            average_fn = get_ema_multi_avg_fn(self.psd.psd_ema_decay)
            # Buffers are copied, not averaged: the text tower's causal mask holds -inf.
            self.average = AveragedModel(self.clip, multi_avg_fn=average_fn, use_buffers=False)
            self.average.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but those that are frozen."""
        super().train(mode)
        for name in self.kept_in_eval:
            self.get_submodule(name).eval()
        return self

    def set_grad_checkpointing(self) -> None:
        """Recompute activations within the towers' blocks or stages, if they can, to save memory."""
        self.clip.set_grad_checkpointing()

    def compile_networks(self) -> None:
        """Have torch compile both towers at their next calls."""
        self.clip.visual.compile()
        # open_clip's CLIP class, unlike CustomTextCLIP, has no module for the whole text tower.
        (self.clip.text if hasattr(self.clip, "text") else self.clip.transformer).compile()

    def begin_step(self, step: int, total_steps: int) -> None:
        """Update what depends on the step: the self-distilled share and rows, and the moving average."""
        row_seed = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        self.psd_step = PsdStep(psd_share(step / total_steps, self.psd), row_seed, self.psd)
        if self.average is not None:
            self.average.update_parameters(self.clip)

    def forward(self, batch: Batch, gradients: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Metrics]:
        """Return the loss over the global batch, as seen from this rank's rows, and its metrics.

        With `gradients` of the loss with respect to the image and text embeddings, scale and bias, return the
        sum of these tensors times their gradients, and no metrics; see GradCached.
        """
        if gradients is None:
            return self.compare([self.embed(batch)])
        learned = self._learned(*self._inputs(batch))
        return torch.stack([(a * b).sum() for a, b in zip(learned, gradients, strict=True)]).sum(), {}

    def embed(self, batch: Batch) -> EmbeddedBatch:
        """Return embeddings, scale and bias, and what the loss needs beside them.

        That is weights and numbers; for psd also caption ids and the moving average's embeddings.
        """
        pixels, tokens = self._inputs(batch)
        given = self._given(pixels, tokens, batch)
        return EmbeddedBatch(self._learned(pixels, tokens), given, batch.global_size)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed pixels, uint8 [B, 3, H, W], as they are: float32 [B, D] of unit length."""
        return F.normalize(self.clip.encode_image(self._normalised(pixels)).float(), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed texts, tokens [B, context_length], on any device: float32 [B, D] of unit length."""
        tokens = tokens.to(self.clip.logit_scale.device)
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    def loss_of(self, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of images that `embed_images` embedded, with their captions; see `forward`."""
        tokens = self.tokenizer(batch.captions).to(images.device)
        # Only an average model reads the pixels again.
        pixels = batch.pixels if self.average is None else self._normalised(batch.pixels)
        given = self._given(pixels, tokens, batch)
        # Not clamped in place as in training: whoever asks for a loss must not change the weights.
        scale = self.clip.logit_scale.clamp(0.0, math.log(MAX_LOGIT_SCALE)).exp()
        learned = (images, self.embed_tokens(tokens), scale, *self._bias())
        return self.compare([EmbeddedBatch(learned, given, batch.global_size)])[0]

    def _given(self, pixels: Tensor, tokens: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the loss needs beside the embeddings; `pixels` are augmented and normalised."""
        given: tuple[Tensor, ...] = (batch.weights, batch.numbers)
        if self.objective == "psd":
            given += (_caption_ids(tokens),)
        if self.average is not None:
            self.average.eval()
            with torch.no_grad():
                given += _encode(self.average.module, pixels, tokens)
        return given

    def compare(self, parts: list[EmbeddedBatch]) -> tuple[Tensor, Metrics]:
        """Return loss and metrics of this rank's batch, in one or more parts, against the global batch."""
        # Each part carries the same scale and bias.
        image, text = (torch.cat(rows) for rows in zip(*(part.learned[:2] for part in parts), strict=True))
        scale, *bias = parts[0].learned[2:]
        weights, numbers, *given = (
            torch.cat(rows) for rows in zip(*(part.given for part in parts), strict=True)
        )
        rows = GlobalRows(weights, numbers, parts[0].global_size)
        metrics: Metrics = {}
        if self.objective == "clip":
            loss = clip_loss(image, text, scale, rows)
        elif self.objective == "siglip":
            loss = sigmoid_loss(image, text, scale, bias[0], rows)
            metrics["logit_bias"] = bias[0].detach()
        else:
            loss, metrics = psd_loss(
                image,
                text,
                scale,
                caption_ids=given[0],
                step=self.psd_step,
                teacher=(given[1], given[2]) if self.average is not None else None,
                rows=rows,
            )
        return loss, {f"loss/{self.objective}": loss.detach(), "logit_scale": scale.detach(), **metrics}

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return augmented, normalised pixels [B, 3, H, W], and tokens [B, context_length]."""
        pixels = self._normalised(augment(batch.pixels, batch.draws, self.augmentation))
        return pixels, self.tokenizer(batch.captions).to(pixels.device)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise_pixels(pixels, self.preprocessing)

    def _learned(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
        return (*_encode(self.clip, pixels, tokens), self.clip.logit_scale.exp(), *self._bias())

    def _bias(self) -> tuple[Tensor, ...]:
        return (self.clip.logit_bias,) if self.objective == "siglip" else ()


def _encode(clip: nn.Module, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    image, text = clip.encode_image(pixels), clip.encode_text(tokens)  # type: ignore[operator]
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def _caption_ids(tokens: Tensor) -> Tensor:
    """Return int64 [B], equal for equal captions on all ranks: sums of tokens times fixed odd numbers."""
    generator = torch.Generator().manual_seed(0)
    factors = 2 * torch.randint(2**62, (tokens.shape[1],), generator=generator) + 1
    return (tokens.long() * factors.to(tokens.device)).sum(dim=1)
