"""Where a run comes from, in tags: who, by which program, at which commit, with which libraries."""

import getpass
import os
import sys
from pathlib import Path

from beamclip.summary import git_commit, library_versions

CLUSTER, USER = "BEAMCLIP_CLUSTER", "BEAMCLIP_USER"
"""Variables: the cluster that a node belongs to; who submitted a job, whose own user is that of the node."""


def origin_tags() -> dict[str, str]:
    """Return MLflow's own tags for user, source and commit, and tags of ours.

    These are `version.NAME` for each library that can change results, and `cluster` on a node of one.
    """
    tags = {
        "mlflow.user": os.environ.get(USER) or _user(),
        "mlflow.source.name": _program(Path(sys.argv[0])),
        "mlflow.source.type": "JOB" if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") else "LOCAL",
        "mlflow.source.git.commit": git_commit(),
        "cluster": os.environ.get(CLUSTER),
        **{f"version.{name}": version for name, version in library_versions().items()},
    }
    return {name: value for name, value in tags.items() if value}


def _program(path: Path) -> str:
    """Name of the program; that of the package if it was started by `python -m`."""
    return (path.parent.name if path.name == "__main__.py" else path.name) or "beamclip"


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return None
