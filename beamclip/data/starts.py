"""Where the samples of a training's shards begin, from what is known of them, or read for it."""

import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence

from numpy import int64
from numpy.typing import NDArray

from beamclip.data.index import NO_PLACES, Index, Starts, starts_of
from beamclip.data.index_pass import find_indexes
from beamclip.data.known_shards import Key, Known, recall
from beamclip.data.shards import Shard


def read_starts(shards: Sequence[Shard]) -> Starts:
    """Where the samples of shards begin. Tars of which nobody knows are read for it, and it is kept.

    A tar that cannot be read has no places: whoever reads its rows says what is wrong with it.
    """
    folders = defaultdict[str, list[Shard]](list)
    for shard in shards:
        if shard.format == "tar":
            folders[posixpath.dirname(shard.path)].append(shard)
    places = dict[str, NDArray[int64]]()
    for folder, tars in folders.items():
        places.update(_places_in(folder, tars))
    return starts_of([places.get(shard.path, NO_PLACES) for shard in shards])


def _places_in(folder: str, tars: Sequence[Shard]) -> dict[str, NDArray[int64]]:
    by_key, by_path = {tar.key: tar for tar in tars}, {tar.path: tar for tar in tars}

    def look(wanted: list[Key]) -> Iterator[Known]:
        for path, found in find_indexes([(by_key[key].path, by_key[key].size) for key in wanted]):
            places = found.places if isinstance(found, Index) else None
            yield Known(by_path[path].key, by_path[path].samples, places)

    known = recall(folder, list(by_key), look, with_places=True)
    return {by_key[each.key].path: each.places for each in known if each.places is not None}
