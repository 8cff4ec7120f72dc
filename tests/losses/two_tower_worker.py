"""One worker of data-parallel steps on a tiny two-tower model; run as a program by test_data_parallel.py.

    python two_tower_worker.py RANK WORLD_SIZE FOLDER

Workers meet over a file in FOLDER and take one step from the same weights for each loss. Rank 0 writes the
gradients to FOLDER/LOSS.gradients.pt, each rank its loss to FOLDER/LOSS.RANK.pt.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.losses.config import PsdConfig
from beamclip.losses.contrastive import clip_loss
from beamclip.losses.psd import PsdStep, psd_loss
from beamclip.losses.sigmoid import sigmoid_loss

BATCH = 8
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class TwoTowers(nn.Module):
    """A small image tower, a small text tower and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 4))
        self.text = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit-length embeddings [B, 4] of pixels [B, 5] and tokens [B, 3], and the scale."""
        image, text = F.normalize(self.image(pixels), dim=1), F.normalize(self.text(tokens), dim=1)
        return image, text, self.log_scale.exp()


def psd(config: PsdConfig, image: Tensor, text: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    """Return the progressive self-distillation loss with half of the batch self-distilled."""
    # Rows 1 and 6, on different workers, have the same caption.
    ids = torch.where(rows == 6, 1, rows)
    return psd_loss(image, text, scale, caption_ids=ids, step=PsdStep(0.5, row_seed=0), config=config)[0]


LOSSES: dict[str, Loss] = {
    "clip": lambda image, text, scale, rows: clip_loss(image, text, scale),
    "sigmoid": lambda image, text, scale, rows: sigmoid_loss(image, text, scale, torch.tensor(-5.0)),
    "psd-swap": partial(psd, PsdConfig(psd_select="random")),
    "psd-self": partial(psd, PsdConfig(psd_target="self", psd_sharpness=2.0, psd_select="random")),
    "psd-sinkhorn": partial(psd, PsdConfig(psd_target="sinkhorn", psd_select="low_confidence")),
}
"""Each loss takes image and text embeddings, the scale, and the rows' indices in the global batch."""


def seeded_towers() -> TwoTowers:
    """Return towers with the same weights in every call."""
    torch.manual_seed(0)
    return TwoTowers()


def global_batch() -> tuple[Tensor, Tensor]:
    """Return pixels [BATCH, 5] and tokens [BATCH, 3], the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 3, generator=generator)


def main(rank: int, world_size: int, folder: Path) -> None:
    """Take one step for each loss, and save losses and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    pixels, tokens, rows = (x.chunk(world_size)[rank] for x in (*global_batch(), torch.arange(BATCH)))
    for name, loss_of in LOSSES.items():
        towers = nn.parallel.DistributedDataParallel(seeded_towers())
        loss = loss_of(*towers(pixels, tokens), rows)
        loss.backward()
        torch.save(loss.detach(), folder / f"{name}.{rank}.pt")
        if rank == 0:
            gradients = {key: p.grad for key, p in towers.module.named_parameters()}
            torch.save(gradients, folder / f"{name}.gradients.pt")
    # The library sometimes aborts a worker that leaves while another still communicates with it.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
