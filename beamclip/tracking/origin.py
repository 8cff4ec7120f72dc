"""Where a run comes from, in tags that MLflow's own pages show: who, by which program, at which commit."""

import getpass
import os
import sys

from beamclip.summary import git_commit

CLUSTER, USER = "BEAMCLIP_CLUSTER", "BEAMCLIP_USER"
"""Variables: the cluster that a node belongs to; who submitted a job, whose own user is that of the node."""


def origin_tags() -> dict[str, str]:
    """Return MLflow's tags for user, source and commit, and the tag `cluster` on a node of one."""
    tags = {
        "mlflow.user": os.environ.get(USER) or _user(),
        "mlflow.source.name": os.path.basename(sys.argv[0]) or "beamclip",
        "mlflow.source.type": "JOB" if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") else "LOCAL",
        "mlflow.source.git.commit": git_commit(),
        "cluster": os.environ.get(CLUSTER),
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return None
