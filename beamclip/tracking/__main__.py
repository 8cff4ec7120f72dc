"""`python -m beamclip.tracking replay RUN_DIR`: send what a run could not send to MLflow."""

import argparse
import sys
from pathlib import Path

from beamclip.errors import InputError
from beamclip.tracking.store import first_line
from beamclip.tracking.unsent import replay


def main() -> int:
    """Run the command and return the exit code: 0, 1 if not all was sent, 2 for invalid input."""
    parser = argparse.ArgumentParser(prog="python -m beamclip.tracking", description=__doc__)
    parser.add_argument("command", choices=["replay"])
    parser.add_argument("run_dir", type=Path, help="the --out folder of the run")
    run_dir = parser.parse_args().run_dir
    try:
        run_id = replay(run_dir, warn=lambda message: print(message, file=sys.stderr))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        print(f"{run_dir}: not all was sent, try again later: {first_line(error)}", file=sys.stderr)
        return 1
    print(f"{run_dir}: sent to MLflow run {run_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
