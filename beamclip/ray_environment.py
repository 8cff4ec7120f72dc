"""The variables that Ray reads when it is imported. Imported with the package: it must not import much."""

import os
import sys

_ENVIRONMENT = {
    # With the default of 2 s, starting or ending a run and noticing a lost worker take that much longer.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A rank that is lost inside a collective must become an error, which restarts the workers.
    # Long enough for rank 0 to read a whole checkpoint while the others wait.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "900",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints a page for each lost worker or node; the commands say in one line where they resume. And it
    # warns of more processes than it likes to start at a time, which two runs in one Ray come to.
    "RAY_DEDUP_LOGS_SKIP_REGEX": (
        "A worker died or was killed while executing a task|PYTHON worker processes have been started"
        "|The node with node id: .* has been marked dead|Raylet is terminated"
        "|Task .* failed. There are infinite retries remaining"
    ),
    # Otherwise a thread that outlives its Ray would start another one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_ray_environment() -> None:
    """Set the variables that Ray reads when it is imported; those already set stay as they are."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def ask_for_tokens() -> None:
    """Let a Ray that is started from here admit only who has its token.

    Not with the package: whoever imports that may be about to join a Ray that knows no tokens. A Ray that is
    imported already has read the variable. It asks for tokens by default, unless it was told otherwise.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
