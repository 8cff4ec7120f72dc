"""Fields and weights of batches whose rows are all good."""

from dataclasses import replace
from typing import Any

import torch

from beamclip.data.batch import Batch


def all_good(count: int) -> dict[str, Any]:
    """Return the fields of a batch that is the global batch of its step by itself, without padding."""
    return {"weights": torch.ones(count), "numbers": torch.arange(count), "global_size": count, "good": count}


def averaged(batch: Batch) -> Batch:
    """Return a batch with the weights that the loop gives it when it is the only one of its step."""
    return replace(batch, weights=batch.weights / batch.good)
