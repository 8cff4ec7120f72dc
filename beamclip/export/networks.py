"""The networks that are exported: from uint8 pixels to embeddings, from embeddings to probabilities."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from beamclip.models.clip import ClipModel, LoadedClip
from beamclip.prompts.anchors import Anchors

_EPS = 1e-12
"""Least length that an embedding is divided by, as in torch.nn.functional.normalize."""


class ImageEncoder(nn.Module):
    """Pixels, uint8 [N, 3, S, S], to embeddings, float32 [N, D] of unit length; normalisation is inside."""

    scale: Tensor
    shift: Tensor

    def __init__(self, clip: LoadedClip) -> None:
        """Copy the image tower of a model."""
        super().__init__()
        self.network = deepcopy(clip.model.visual).requires_grad_(False).eval()
        mean, std = clip.preprocessing.mean, clip.preprocessing.std
        std_c, mean_c = torch.tensor(std).view(1, 3, 1, 1), torch.tensor(mean).view(1, 3, 1, 1)
        self.register_buffer("scale", 1.0 / (255.0 * std_c))
        self.register_buffer("shift", -mean_c / std_c)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels."""
        embeddings = self.network(pixels.float() * self.scale + self.shift)
        # CoCa's tower returns the tokens too.
        return _unit(embeddings[0] if isinstance(embeddings, tuple) else embeddings)


class ClassHead(nn.Module):
    """Embeddings, float32 [N, D] of unit length, to class probabilities, float32 [N, K].

    A class's logit is the logit scale times its similarity, as in CLIP; with several anchors it is the
    logarithm of the sum of their exponentials, as in `class_scores` at the temperature 1 / logit scale.
    """

    weight: Tensor
    padding: Tensor

    def __init__(self, anchors: Anchors, num_classes: int, logit_scale: float) -> None:
        """Lay out the anchors, each class's beside each other.

        Args:
            anchors: every class of `range(num_classes)` owns at least one.
            num_classes: K.
            logit_scale: the factor itself, not its logarithm.
        """
        super().__init__()
        owners = anchors.class_index
        most = int(torch.bincount(owners, minlength=num_classes).max())
        weight = torch.zeros(num_classes, most, anchors.embeddings.shape[1])
        padding = torch.full((num_classes, most), -torch.inf)
        places = torch.zeros(num_classes, dtype=torch.long)
        for owner, anchor in zip(owners.tolist(), anchors.embeddings.float(), strict=True):
            weight[owner, places[owner]] = anchor
            padding[owner, places[owner]] = 0.0
            places[owner] += 1
        self.shape = (num_classes, most)
        self.register_buffer("weight", logit_scale * weight.flatten(0, 1).T.contiguous())
        self.register_buffer("padding", padding)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Classify embeddings."""
        logits = embeddings @ self.weight
        if self.shape[1] > 1:
            logits = (logits.unflatten(1, self.shape) + self.padding).logsumexp(dim=2)
        return logits.softmax(dim=1)


class Classifier(nn.Module):
    """Pixels, uint8 [N, 3, S, S], to class probabilities, float32 [N, K]."""

    def __init__(self, encoder: ImageEncoder, head: ClassHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify pixels."""
        return self.head(self.encoder(pixels))


class TextEncoder(nn.Module):
    """Tokens, int64 [N, L], to embeddings, float32 [N, D] of unit length."""

    def __init__(self, clip: LoadedClip) -> None:
        """Copy the text tower of a model."""
        super().__init__()
        self.model: ClipModel = deepcopy(clip.model).requires_grad_(False).eval()
        self.model.visual = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens."""
        return _unit(self.model.encode_text(tokens))


def logit_scale(clip: LoadedClip) -> float:
    """Return the factor between similarities and logits: 1 / temperature."""
    return float(clip.model.logit_scale.detach().exp())


def _unit(embeddings: Tensor) -> Tensor:
    # F.normalize exports as an expansion to the full shape, which shape inference cannot follow.
    return embeddings / embeddings.norm(dim=-1, keepdim=True).clamp_min(_EPS)
