"""Runs before each Python worker of a Ray that a command starts, in place of Ray's own setup_worker.py.

Ray's program reads the worker's runtime environment and runs the worker in it. To do so it imports Ray, which
costs every worker 0.6 s of a core before it starts. This program needs the standard library alone. It handles
the environments that beamclip makes, variables and a command line for Python; all others it leaves to Ray's.
"""

import json
import os
import shlex
import sys

CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language=PYTHON"
HANDLED = {"env_vars", "py_executable"}
"""Entries of a runtime environment that this program handles; with any other, Ray's program runs."""


def main() -> None:
    """Become the worker, or Ray's own program."""
    command = worker_command(sys.argv[1:]) or _rays_command(sys.argv[1:])
    os.execvp(command[0], command)


def worker_command(arguments: list[str]) -> list[str] | None:
    """Return the command line of the worker, and set its variables; None if Ray's program is needed."""
    contexts = [word.removeprefix(CONTEXT) for word in arguments if word.startswith(CONTEXT)]
    if len(contexts) != 1 or LANGUAGE not in arguments:
        return None
    context = json.loads(contexts[0])
    variables = context.get("env_vars") or {}
    # Ray's program expands references to other variables.
    if any(context[name] for name in context.keys() - HANDLED) or any("$" in v for v in variables.values()):
        return None
    os.environ.update(variables)
    rest = [word for word in arguments if word != LANGUAGE and not word.startswith(CONTEXT)]
    return [*shlex.split(context.get("py_executable") or sys.executable), *rest]


def _rays_command(arguments: list[str]) -> list[str]:
    # Ray's program lies beside the worker's script, the first .py among the arguments.
    script = next(word for word in arguments if word.endswith(".py"))
    return [sys.executable, os.path.join(os.path.dirname(script), "setup_worker.py"), *arguments]


if __name__ == "__main__":
    main()
