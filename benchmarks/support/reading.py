"""How a training reads its shards: requests and samples that come with them, planned by the real code."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from beamclip.data.bundles import Bundle, bundles_of
from beamclip.data.index import starts_of
from beamclip.data.mixture import mixture_of
from beamclip.data.order import PIECE
from beamclip.data.shards import Shard

WINDOWS = 256
"""Windows that are planned: how pieces lie in the lanes shifts slowly from one to the next."""


@dataclass(frozen=True)
class Reading:
    """What a sample takes to be read, on average; a request brings one piece of neighbours."""

    requests: float
    """To the store. Each brings whole pieces, wherever in them the wanted samples lie."""
    fetched: float
    """Samples that come with them, wanted or not."""
    opened: float
    """Shards that a read task opens: the same one for all of its requests."""


def planned_reading(shards: int, rows: int, window: int, workers: int, batch_size: int) -> Reading:
    """Plan what the first of some workers reads.

    Args:
        shards: number of them.
        rows: samples of each.
        window: samples that are shuffled among each other.
        workers: that share the windows.
        batch_size: samples of a step, over all workers.
    """
    counts = np.full(min(shards, -(-WINDOWS * window // rows)), rows, np.int64)
    listed = [Shard(f"s3://data/{number}.tar", rows, "tar") for number in range(len(counts))]
    # As if a sample had one byte: a span is then the samples that come with it.
    starts = starts_of([np.minimum(np.arange(-(-rows // PIECE) + 1) * PIECE, rows)] * len(counts))
    mixture = mixture_of([counts], (), window, 0, workers)
    planned = mixture.windows_from(0, 0, workers, mixture.together(batch_size, workers))
    windows = takewhile(lambda each: each.epoch == 0, planned)
    bundles = [bundle for each in windows for bundle in bundles_of(each, listed, starts)]
    samples = sum(bundle.rows for bundle in bundles)
    segments = [segment for bundle in bundles for segment in bundle.segments]
    fetched = sum((segment.span.stop or 0) - segment.span.first for segment in segments)
    return Reading(len(segments) / samples, fetched / samples, sum(map(_opened, bundles)) / samples)


def _opened(bundle: Bundle) -> int:
    return len({segment.shard.path for segment in bundle.segments})
