"""One worker of a data-parallel step on a tiny two-tower model; run as a program by test_contrastive.py.

    python two_tower_worker.py RANK WORLD_SIZE FOLDER

Workers meet over a file in FOLDER. Rank 0 leaves its gradients in FOLDER/gradients.pt, each rank its loss.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.losses.contrastive import clip_loss

BATCH = 8


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 4))
        self.text = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = F.normalize(self.image(pixels), dim=1), F.normalize(self.text(tokens), dim=1)
        return image, text, self.log_scale.exp()


def seeded_towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers()


def global_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 3, generator=generator)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    towers = nn.parallel.DistributedDataParallel(seeded_towers())
    pixels, tokens = (x.chunk(world_size)[rank] for x in global_batch())
    loss = clip_loss(*towers(pixels, tokens))
    loss.backward()
    torch.save(loss.detach(), folder / f"loss-{rank}.pt")
    if rank == 0:
        torch.save({name: p.grad for name, p in towers.module.named_parameters()}, folder / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
