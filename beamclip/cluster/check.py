"""Say what is missing before `ray up FILE` can work, one line each, without changing anything.

`ray up` itself finds most of it minutes later, with a traceback, and with machines that cost already.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from beamclip.cluster.aws.questions import Finding, aws_findings
from beamclip.cluster.aws.settings import aws_settings
from beamclip.cluster.cluster_file import ClusterFile, read_cluster_file
from beamclip.errors import InputError

_TOKEN = "~/.ray/auth_token"


def findings(cluster: ClusterFile) -> Iterator[Finding]:
    """Yield everything that is missing for a cluster."""
    for name in ("ssh", "rsync"):
        if not shutil.which(name):
            yield Finding(f"{name}: is not installed here, and `ray up` works through it.")
    for placeholder in cluster.placeholders:
        yield Finding(f"{cluster.path}: {placeholder} is a placeholder. Put yours.")
    yield from chain(_mounts(cluster), _key(cluster))
    if cluster.provider["type"] == "aws":
        yield from aws_findings(aws_settings(cluster))


def _mounts(cluster: ClusterFile) -> Iterator[Finding]:
    """Yield what is to be sent to the nodes and is not here, as seen from the current folder."""
    for source in cluster.content.get("file_mounts", {}).values():
        if Path(source).expanduser().exists():
            continue
        if source == _TOKEN:
            yield Finding(
                f"{_TOKEN}: does not exist; it is the secret of the nodes. Run: ray get-auth-token --generate"
            )
        else:
            yield Finding(
                f"{cluster.path}: file_mounts: {source} is not in {Path.cwd()}. "
                "Run this in the top folder of the checkout."
            )


def _key(cluster: ClusterFile) -> Iterator[Finding]:
    """Yield what is wrong with the key by which nodes are reached; on AWS, Ray makes one."""
    key = cluster.content.get("auth", {}).get("ssh_private_key")
    where = f"{cluster.path}: auth.ssh_private_key"
    if key and not Path(key).expanduser().is_file():
        yield Finding(f"{where}: {key} does not exist. Give the key that opens the nodes.")
    if not key and cluster.provider["type"] == "local":
        yield Finding(f"{where}: is missing. The head reaches the workers with it.")


def main() -> int:
    """Run the check and return the exit code: 0, or 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m beamclip.cluster.check", description=__doc__)
    parser.add_argument("file", type=Path, help="the cluster file, such as cluster.yaml")
    path = parser.parse_args().file
    blocked = False
    try:
        for finding in findings(read_cluster_file(path)):
            print(
                finding.text if finding.blocks else f"not checked: {finding.text}",
                file=sys.stderr,
                flush=True,
            )
            blocked |= finding.blocks
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if not blocked:
        print(f"{path}: nothing is missing for ray up")
    return 2 if blocked else 0


if __name__ == "__main__":
    sys.exit(main())
