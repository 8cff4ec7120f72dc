"""Options of the linear probe; parsing options must not import torch."""

from dataclasses import dataclass
from typing import Literal

from beamclip.ranges import Count, Natural, Positive, check_ranges


@dataclass(frozen=True)
class ProbeConfig:
    """How the linear probe is fitted."""

    probe: Literal["clip", "ssl"] = "clip"
    """clip: logistic regression by L-BFGS on the features of whole images, its strength searched, as CLIP's
    authors do. ssl: SGD on random crops and their mirror images, several learning rates side by side, as in
    self-supervised learning; features are never held, so that it suits data as large as ImageNet."""
    probe_iterations: Count = 1000
    """Most iterations of L-BFGS in each fit, with --probe clip."""
    probe_c: Positive | None = None
    """Weight C on the losses, against the L2 penalty, with --probe clip; by default searched from 1e-6 to 1e6
    on a fifth of the training images."""
    probe_epochs: Count = 100
    """Passes over the training images, with --probe ssl."""
    probe_lrs: tuple[Positive, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates for a batch of 256, with --probe ssl: each trains a classifier of its own on the same
    features, and a tenth of the training images, held out, says which one is scored."""
    probe_batch: Count = 256
    """Images in a step, with --probe ssl; learning rates are multiplied by a 256th of it."""
    probe_seed: Natural = 0
    """Decides which training images choose C or the learning rate, and the crops of --probe ssl."""

    def __post_init__(self) -> None:
        check_ranges(self)
