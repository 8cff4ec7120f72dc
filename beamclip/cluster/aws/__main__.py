"""Give the nodes of a cluster file their rights on AWS, before `ray up`: `make aws-role`.

Makes a role with an instance profile for the head and one for the workers, and a security group that lets in
nobody but the addresses in the file. May be run again, after the file was edited or from a new address.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from beamclip.cluster.aws.account import is_aws_error, open_account, said
from beamclip.cluster.aws.roles import delete_access, make_access
from beamclip.cluster.aws.settings import aws_settings
from beamclip.cluster.cluster_file import read_cluster_file
from beamclip.errors import InputError


def main() -> int:
    """Run the command and return the exit code: 0, 1 if AWS refuses something, 2 for invalid input."""
    parser = argparse.ArgumentParser(prog="python -m beamclip.cluster.aws", description=__doc__)
    parser.add_argument("command", choices=["role"])
    parser.add_argument("file", type=Path, help="the cluster file, such as cluster.yaml")
    parser.add_argument("--delete", action="store_true", help="delete all of it, after `ray down`")
    options = parser.parse_args()
    try:
        for line in _lines(options.file, options.delete):
            print(line, flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if not is_aws_error(error):
            raise
        print(f"AWS: {said(error)}", file=sys.stderr)
        return 1
    return 0


def _lines(path: Path, delete: bool) -> Iterator[str]:
    """Do what was asked for; yield what was done, line by line."""
    cluster = read_cluster_file(path)
    if cluster.provider["type"] != "aws":
        raise InputError(f"{path}: provider.type is {cluster.provider['type']}, and this is for aws.")
    if cluster.placeholders and not delete:
        raise InputError(f"{path}: {cluster.placeholders[0]} is a placeholder. Put yours.")
    settings = aws_settings(cluster)
    account = open_account(settings)
    return (delete_access if delete else make_access)(account, settings)


if __name__ == "__main__":
    sys.exit(main())
