"""Progressive self-distillation of image-text pairs (https://arxiv.org/abs/2204.04588).

Captions from the web fit several images, and some fit none. A growing share of each global batch therefore
learns from soft targets that the model itself produces, the rest from the pairs as they came.

From the paper's abstract: soft targets from the model's own knowledge for a subset of images and captions in
every minibatch, progressively, at no added cost. This project's choice, made from the abstract alone: the
kinds of target, the share and its schedule, which rows, and the floor of the pair's own weight.

The gradient of a cross-entropy is p - q: a target made by the same network, from the same similarities, in
the same direction and at the same temperature equals p and teaches nothing. Each kind of target differs in
one of these (`PsdConfig.psd_target`).

Every rank holds only its own rows of the [N, N] similarities. Of the other rows, a target needs one number a
column, so a gather of N numbers suffices. Rows and columns follow the convention of losses.contrastive: those
of weight 0 take no part in targets either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.config import PsdConfig
from beamclip.losses.contrastive import GlobalColumns, GlobalRows, global_columns
from beamclip.losses.similarity import similarities
from beamclip.losses.weighted import weighted_sum

SINKHORN_ROUNDS = 3


@dataclass(frozen=True)
class PsdStep:
    """How a training step self-distils: the options, how many rows, and which."""

    share: float
    """Part of the global batch that is self-distilled, 0..1: round(share * N) of N rows."""
    row_seed: int
    """Decides which rows are drawn at random; the same on every rank, different in each step."""
    config: PsdConfig


def psd_share(progress: float, config: PsdConfig) -> float:
    """Return the self-distilled share of the batch, 0..1, after `progress` (0..1) of all steps."""
    if progress < config.psd_warmup:
        return 0.0
    if config.psd_schedule == "constant":
        return config.psd_end
    done = (progress - config.psd_warmup) / max(1.0 - config.psd_warmup, 1e-12)
    if config.psd_schedule == "cosine":
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    return config.psd_start + (config.psd_end - config.psd_start) * done


def psd_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    caption_ids: Tensor,
    step: PsdStep,
    teacher: tuple[Tensor, Tensor] | None = None,
    rows: GlobalRows | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrastive loss in which a share of the global batch learns from the model's own soft alignments.

    With N rows in the global batch, L = logit_scale * image @ text.T and U the self-distilled rows, the
    target of row i is one-hot outside U and (1 - m) q_i + m identity_i inside, where m is the identity floor
    and q takes no gradient. Equal captions share a target's mass evenly, outside U too. Computed in float32
    whatever autocast says, and no TF32; memory beyond clip_loss is a few [B, N].

    Args:
        image: [B, D] image embeddings of this rank, unit length.
        text: [B, D] embeddings of their captions, in the same order, unit length.
        logit_scale: scalar factor of the similarities itself, not its logarithm.
        caption_ids: int64 [B], equal for equal captions.
        step: options, share and choice of the rows to self-distil.
        teacher: image and text embeddings [B, D] of the moving average, for target ema alone.
        rows: places and weights of this rank's rows; None where all rows of all ranks count 1/B each, in the
            order of the ranks.

    Returns:
        Scalar, nats, weighted sum over this rank's rows of the mean of both directions, which with share 0
        and captions that all differ equals clip_loss; and metrics: psd/share, psd/entropy (nats, mean over
        this rank's targets of U) and psd/agreement (how often such a target's largest entry is the pair
        itself; both 0 where this rank has none).

    Raises:
        ValueError: the shapes do not fit together, the share is outside 0..1, target ema has no teacher, or
            another target has one.
    """
    _check(image, text, caption_ids, step, teacher)
    columns = global_columns(rows, image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.to(dtype)
        logits = _logits((image, text), scale, columns)
        with torch.no_grad():
            of_teacher = _logits(teacher, scale, columns) if teacher else logits
            soft = _soft_targets(*of_teacher, columns, step.config)
            chosen = _chosen_rows(*logits, columns, step)
            identity = _identity(caption_ids, columns, dtype)
            targets = [_mixed(q, identity, chosen, step.config.psd_identity) for q in soft]
            metrics = _metrics(targets, chosen, columns.own, step.share)
        losses = [F.cross_entropy(x, q, reduction="none") for x, q in zip(logits, targets, strict=True)]
        return weighted_sum(losses[0] + losses[1], columns.weights) / 2, metrics


def _check(
    image: Tensor,
    text: Tensor,
    caption_ids: Tensor,
    step: PsdStep,
    teacher: tuple[Tensor, Tensor] | None,
) -> None:
    if image.ndim != 2 or image.shape != text.shape or caption_ids.shape != image.shape[:1]:
        raise ValueError(
            f"image is {list(image.shape)}, text is {list(text.shape)}, caption_ids are "
            f"{list(caption_ids.shape)}: they must be [B, D], the same [B, D] and [B]."
        )
    if not 0.0 <= step.share <= 1.0:
        raise ValueError(f"share is {step.share}; it must be from 0 to 1.")
    if (step.config.psd_target == "ema") != (teacher is not None):
        raise ValueError("target ema, and no other, takes the embeddings of a moving average as teacher.")


def _logits(pairs: tuple[Tensor, Tensor], scale: Tensor, columns: GlobalColumns) -> tuple[Tensor, Tensor]:
    """Scaled similarities [B, N] of images with texts and of texts with images."""
    image, text = (part.to(scale.dtype) for part in pairs)
    return (
        columns.masked(similarities(scale * image, columns.embeddings(text))),
        columns.masked(similarities(scale * text, columns.embeddings(image))),
    )


def _identity(caption_ids: Tensor, columns: GlobalColumns, dtype: torch.dtype) -> Tensor:
    """[B, N]: each row's mass on the captions that equal its own; sums to 1 in rows that count."""
    same = (caption_ids[:, None] == columns.values(caption_ids)) & columns.good
    return same.to(dtype) / same.sum(dim=1, keepdim=True).clamp(min=1)


def _soft_targets(
    image_logits: Tensor, text_logits: Tensor, columns: GlobalColumns, config: PsdConfig
) -> tuple[Tensor, Tensor]:
    """Alignments [B, N] of images with texts and of texts with images; rows sum to 1."""
    # Masked again: a small sharpness would bring masked logits near the others.
    image_logits, text_logits = (
        columns.masked(config.psd_sharpness * part) for part in (image_logits, text_logits)
    )
    if config.psd_target in ("self", "ema"):
        return image_logits.softmax(dim=1), text_logits.softmax(dim=1)
    # Half a round of Sinkhorn's algorithm, which makes each column sum to one, is the transposed softmax of
    # the other direction: swap. More rounds go to the plan whose rows and columns both sum to one.
    rounds = SINKHORN_ROUNDS if config.psd_target == "sinkhorn" else 1
    return (
        _balanced(image_logits, text_logits, columns, rounds),
        _balanced(text_logits, image_logits, columns, rounds),
    )


def _balanced(of_rows: Tensor, of_columns: Tensor, columns: GlobalColumns, rounds: int) -> Tensor:
    """Row-normalised exp(of_rows) after its columns were scaled to sum to one, `rounds` times alternating.

    `of_columns` [B, N] are this rank's columns of the [N, N] matrix whose rows of this rank are `of_rows`
    [B, N].
    """
    row_offset = of_rows.new_zeros(of_rows.shape[1])
    column_offset = row_offset
    for turn in range(rounds):
        if turn:
            row_offset = -columns.values((of_rows + column_offset).logsumexp(dim=1))
        column_offset = -columns.values((of_columns + row_offset).logsumexp(dim=1))
    return (of_rows + column_offset).softmax(dim=1)


def _chosen_rows(image_logits: Tensor, text_logits: Tensor, columns: GlobalColumns, step: PsdStep) -> Tensor:
    """bool [B]: which of this rank's rows are self-distilled; all ranks make the same global choice."""
    total = image_logits.shape[1]
    count = round(step.share * total)
    if step.config.psd_select == "random":
        order = torch.randperm(total, generator=torch.Generator().manual_seed(step.row_seed))
        order = order.to(image_logits.device)
    else:
        own = columns.own[:, None]
        sure = [part.log_softmax(dim=1).gather(1, own)[:, 0].exp() for part in (image_logits, text_logits)]
        order = columns.values(sure[0] + sure[1]).masked_fill(~columns.good, math.inf).argsort(stable=True)
    chosen = torch.zeros(total, dtype=torch.bool, device=image_logits.device)
    chosen[order[:count]] = True
    return chosen[columns.own] & (columns.weights != 0)


def _mixed(soft: Tensor, identity: Tensor, chosen: Tensor, floor: float) -> Tensor:
    """Targets [B, N]: soft ones with the identity's floor in the chosen rows, the identity in the others."""
    return torch.where(chosen[:, None], torch.lerp(soft, identity, floor), identity)


def _metrics(targets: list[Tensor], chosen: Tensor, own: Tensor, share: float) -> dict[str, Tensor]:
    count = chosen.sum().clamp(min=1)
    entropy = sum((torch.special.entr(target).sum(dim=1) * chosen).sum() for target in targets)
    agreement = sum(((target.argmax(dim=1) == own) & chosen).sum() for target in targets)
    return {
        "psd/share": torch.tensor(share, device=chosen.device),
        "psd/entropy": torch.as_tensor(entropy) / (2 * count),
        "psd/agreement": torch.as_tensor(agreement) / (2 * count),
    }
