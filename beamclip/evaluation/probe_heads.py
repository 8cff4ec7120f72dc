"""Linear classifiers trained side by side by SGD, one a learning rate: the probe of self-supervised work.

The recipe is that of DINO (arXiv 2104.14294) and iBOT: SGD with momentum 0.9, no weight decay, a cosine down
to 0 over the training, learning rates for a batch of 256 that grow with the batch. As in MAE (arXiv
2111.06377, appendix A.3), a batch norm without parameters comes before the classifiers, so that one set of
learning rates suits backbones of any scale.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.9
INITIAL_DEVIATION = 0.01
REFERENCE_BATCH = 256


class LinearHeads(nn.Module):
    """Several linear classifiers of the same features, each with a learning rate of its own."""

    def __init__(
        self, width: int, classes: int, lrs: Sequence[float], *, batch_size: int, seed: int = 0
    ) -> None:
        """Set up untrained classifiers, all with the same initial weights.

        Args:
            width: F, of the features.
            classes: K.
            lrs: learning rate of each classifier for a batch of 256.
            batch_size: images of a step.
            seed: of the initial weights.
        """
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        weights = torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
        heads = [nn.Linear(width, classes) for _ in lrs]
        self.heads = nn.ModuleList(heads)
        with torch.no_grad():
            for head in heads:
                head.weight.copy_(INITIAL_DEVIATION * weights)
                head.bias.zero_()
        self.lrs = [lr * batch_size / REFERENCE_BATCH for lr in lrs]
        groups = [
            {"params": head.parameters(), "lr": lr} for head, lr in zip(self.heads, self.lrs, strict=True)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)

    def step(self, features: Tensor, labels: Tensor, progress: float) -> None:
        """Train all classifiers on a batch: features [B, F], labels [B]; B of 2 or more.

        Args:
            progress: part of the training that lies behind, 0..1, which says how far the cosine has fallen.
        """
        self.train()
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * (1 + math.cos(math.pi * progress)) / 2
        normed = self.norm(features)
        # The losses share no weights, so that their sum trains each classifier as it would be trained alone.
        loss = torch.stack([F.cross_entropy(head(normed), labels) for head in self.heads]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def scores(self, features: Tensor, head: int) -> Tensor:
        """Return the logits [B, K] of one classifier; batches do not matter."""
        self.eval()
        logits: Tensor = self.heads[head](self.norm(features))
        return logits

    def accuracies(self, features: Tensor, labels: Tensor) -> list[float]:
        """Return each classifier's top-1 accuracy; one that has diverged finds nothing."""
        found = []
        for head in range(len(self.heads)):
            logits = self.scores(features, head)
            right = (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)
            found.append(float(right.float().mean()))
        return found
