"""`python -m beamclip.tracking`: show the runs of this machine, or send MLflow what a run could not send."""

import argparse
import signal
import sys
from pathlib import Path

from beamclip.errors import InputError
from beamclip.tracking.store import first_line
from beamclip.tracking.ui import show
from beamclip.tracking.unsent import replay

PORT = 5000


def main() -> int:
    """Run the command and return the exit code: 0, 1 if not all was sent, 2 for invalid input."""
    given = _parser().parse_args()
    # As Ctrl-C does: the server must not outlive the command.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _replay(given.run_dir) if given.command == "replay" else show(given.store, given.port, _tell)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m beamclip.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="show the runs of this machine in MLflow's pages")
    ui.add_argument("--port", type=int, default=PORT, help="of this machine")
    ui.add_argument(
        "--store", default=None, help="another SQLite file; by default MLFLOW_TRACKING_URI, else the user's"
    )
    sent = commands.add_parser("replay", help="send what a run could not send to MLflow")
    sent.add_argument("run_dir", type=Path, help="the --out folder of the run")
    return parser


def _replay(run_dir: Path) -> int:
    try:
        run_id = replay(run_dir, warn=lambda message: print(message, file=sys.stderr))
    except InputError:
        raise
    except Exception as error:
        print(f"{run_dir}: not all was sent, try again later: {first_line(error)}", file=sys.stderr)
        return 1
    print(f"{run_dir}: sent to MLflow run {run_id}")
    return 0


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
