"""One worker of data-parallel steps on a tiny two-tower model; run as a program by test_data_parallel.py.

    python two_tower_worker.py RANK WORLD_SIZE FOLDER

Workers meet over a file in FOLDER and take steps from the same weights for each loss: on an equal part of a
batch each, and on a batch whose samples are dealt out to the workers in turn, with padding. Rank 0 writes the
gradients to FOLDER/LOSS.gradients.pt and FOLDER/LOSS.dealt.gradients.pt, each rank its losses to
FOLDER/LOSS.RANK.pt and FOLDER/LOSS.dealt.RANK.pt.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.losses.batch_terms import affinity_loss, crd_loss, icl_loss, relation_loss
from beamclip.losses.config import PsdConfig
from beamclip.losses.contrastive import GlobalRows, clip_loss
from beamclip.losses.psd import PsdStep, psd_loss
from beamclip.losses.sigmoid import sigmoid_loss

BATCH = 8
UNUSABLE = (2, 3)
"""Samples of the batch that is dealt out that do not count."""
Loss = Callable[..., Tensor]


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


def psd(
    config: PsdConfig,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    numbers: Tensor,
    rows: GlobalRows | None = None,
) -> Tensor:
    """Return the progressive self-distillation loss with half of the batch self-distilled."""
    # Rows 1 and 6, on different workers, have the same caption.
    ids = torch.where(numbers == 6, 1, numbers)
    teacher = (image.detach().flip(1), text.detach().flip(1)) if config.psd_target == "ema" else None
    step = PsdStep(0.5, 0, config)
    return psd_loss(image, text, scale, caption_ids=ids, step=step, teacher=teacher, rows=rows)[0]


def both_ways(
    term: Callable[[Tensor, Tensor, GlobalRows | None], Tensor],
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    _: Tensor,
    rows: GlobalRows | None = None,
) -> Tensor:
    """Return a term of one tower against the other and back, so that gradients reach both and the scale."""
    return scale * (term(image, text, rows) + term(text, image, rows))


def icl(student: Tensor, other: Tensor, rows: GlobalRows | None) -> Tensor:
    """Return the term with the other tower's embeddings for texts."""
    return icl_loss(student, other, tau=0.2, rows=rows)


def crd(student: Tensor, other: Tensor, rows: GlobalRows | None) -> Tensor:
    """Return the term with the other tower's embeddings for texts, and these turned for a teacher's."""
    return crd_loss(student, other.flip(1), other, tau_student=0.2, tau_teacher=0.1, rows=rows)


def affinity(student: Tensor, other: Tensor, rows: GlobalRows | None) -> Tensor:
    """Return the term with the other tower's embeddings for texts, and these turned for a teacher's."""
    return affinity_loss(student, other.flip(1), other, tau=0.2, rows=rows)


def relation(student: Tensor, other: Tensor, rows: GlobalRows | None) -> Tensor:
    """Return the term with the other tower's embeddings for a teacher's."""
    return relation_loss(student, other, tau_student=0.2, tau_teacher=0.1, rows=rows)


LOSSES: dict[str, Loss] = {
    "clip": lambda image, text, scale, _, rows=None: clip_loss(image, text, scale, rows),
    "sigmoid": lambda image, text, scale, _, rows=None: sigmoid_loss(
        image, text, scale, torch.tensor(-5.0), rows
    ),
    "psd-swap": partial(psd, PsdConfig(psd_select="random")),
    "psd-self": partial(psd, PsdConfig(psd_target="self", psd_sharpness=2.0, psd_select="random")),
    "psd-sinkhorn": partial(psd, PsdConfig(psd_target="sinkhorn", psd_select="low_confidence")),
    "psd-ema": partial(psd, PsdConfig(psd_target="ema", psd_select="low_confidence")),
    **{term.__name__: partial(both_ways, term) for term in (icl, crd, affinity, relation)},
}
"""Each loss takes image and text embeddings, the scale, the rows' numbers in the global batch, and perhaps
the rows' places and weights."""


def seeded_towers() -> TwoTowers:
    """Return towers with the same weights in every call."""
    torch.manual_seed(0)
    return TwoTowers()


def global_batch() -> tuple[Tensor, Tensor]:
    """Return pixels [BATCH, 5] and tokens [BATCH, 3], the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 3, generator=generator)


def dealt(rank: int, world_size: int) -> tuple[Tensor, Tensor, GlobalRows]:
    """Return a rank's float64 pixels and tokens, and its rows, of the batch that is dealt out.

    Number i goes to rank i % world_size, the last number first, between padding.
    """
    numbers = torch.arange(rank, BATCH, world_size).flip(0)
    padding = torch.full((2 + -(-BATCH // world_size) - len(numbers),), BATCH)
    numbers = torch.cat([padding[:1], numbers, padding[1:]])
    good = (numbers != BATCH) & ~torch.isin(numbers, torch.tensor(UNUSABLE))
    pixels, tokens = (torch.cat([x, -x[:1]]).double()[numbers] for x in global_batch())
    weights = good.double() * world_size / (BATCH - len(UNUSABLE))
    return pixels, tokens, GlobalRows(weights, numbers, BATCH)


def dealt_step(towers: nn.Module, loss_of: Loss, rank: int, world_size: int) -> Tensor:
    """Return this rank's loss on its share of the batch that is dealt out, after its backward pass."""
    pixels, tokens, rows = dealt(rank, world_size)
    loss = loss_of(*towers(pixels, tokens), rows.numbers, rows)
    loss.backward()
    return loss.detach()


def equal_step(towers: nn.Module, loss_of: Loss, rank: int, world_size: int) -> Tensor:
    """Return this rank's loss on an equal part of the batch, after its backward pass."""
    pixels, tokens, numbers = (x.chunk(world_size)[rank] for x in (*global_batch(), torch.arange(BATCH)))
    loss = loss_of(*towers(pixels, tokens), numbers)
    loss.backward()
    return loss.detach()


def main(rank: int, world_size: int, folder: Path) -> None:
    """Take the steps of each loss, and save losses and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    for name, loss_of in LOSSES.items():
        steps = {f"{name}.dealt": (dealt_step, seeded_towers().double())}
        if BATCH % world_size == 0:
            steps[name] = (equal_step, seeded_towers())
        for step_name, (step, towers) in steps.items():
            loss = step(nn.parallel.DistributedDataParallel(towers), loss_of, rank, world_size)
            torch.save(loss, folder / f"{step_name}.{rank}.pt")
            if rank == 0:
                gradients = {key: p.grad for key, p in towers.named_parameters()}
                torch.save(gradients, folder / f"{step_name}.gradients.pt")
    # The library sometimes aborts a worker that leaves while another still communicates with it.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
