"""How much memory the reading of bundles takes: pickled bundles come from stdin, megabytes go to stdout."""

import json
import pickle
import re
import sys
from pathlib import Path

from beamclip.data.bundles import Bundle, read_bundle
from beamclip.data.shards import Columns


def main() -> None:
    """Read the bundles one after the other, as a process of Ray does that runs read tasks."""
    bundles: list[Bundle] = pickle.load(sys.stdin.buffer)
    # The libraries of the store are loaded with the first piece.
    list(read_bundle(Bundle(bundles[0].segments[:1]), Columns()))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, size = _status("VmRSS"), 0
    for bundle in bundles:
        size = max(size, sum(table.nbytes for table in read_bundle(bundle, Columns())))
    print(json.dumps({"before": before, "peak": _status("VmHWM"), "rows of a bundle": size / 1e6}))


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {name}"
    return int(found[1]) / 1e3


if __name__ == "__main__":
    main()
