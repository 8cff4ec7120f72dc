"""Turn the command line into a configuration, and an outcome into an exit code.

Exit codes: 0 done, 1 failed while running, 2 invalid input, 130 ended by Ctrl-C or SIGTERM.
"""

import contextlib
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import tyro

from beamclip.addresses import without_secrets
from beamclip.commands.console import print_stage, shown_as_stages
from beamclip.commands.help import option_registry
from beamclip.commands.ray_lines import keep_ray_lines, ray_lines_apart
from beamclip.config import check_values, read_config, with_options
from beamclip.errors import FailedRunError, InputError
from beamclip.places import refuse_address
from beamclip.runs.backup import ADVICE, bring_run, has_copy, keep_whole, restore_run
from beamclip.runs.folder import CONFIG_FILE, checkpoint_address, new_run_dir
from beamclip.storage import in_storage, storage, with_storage

Config = TypeVar("Config")

_SOURCES = ("resume", "config", "out")
"""Options that decide where the values of others come from."""

_DEFAULTS_IN_STORAGE = {"ingest": "shards", "embed": "cache"}
"""What a command makes for others to read; everything else is a run."""
_FILES = ("classes", "report")
"""Commands whose `out` is a file."""


def parse(
    config_class: type[Config], argv: Sequence[str], description: str, program: str = "beamclip"
) -> Config:
    """Build a configuration: flags override the YAML file, which overrides the defaults.

    Raises:
        InputError: an unknown flag, a value of the wrong type, a missing or faulty YAML file, an address that
            was stored without its password.
        SystemExit: after --help.
    """
    default = _defaults(config_class, {name: _value_of(argv, name) for name in _SOURCES})
    printed = io.StringIO()
    helping = any(flag in argv for flag in ("-h", "--help"))
    try:
        with contextlib.nullcontext() if helping else contextlib.redirect_stderr(printed):
            config = tyro.cli(
                config_class,
                args=list(argv),
                default=default,
                description=description,
                prog=program,
                registry=option_registry(),
                config=(
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.HelptextFromCommentsOff,
                ),
            )
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(printed.getvalue())) from None
    return _usable(config)


def configure(config_class: type[Config], options: Mapping[str, Any], source: str) -> Config:
    """Build a configuration from options as keywords in Python give them, by the rules of `parse`.

    Args:
        options: name -> value; see `config.with_options`.
        source: named in the messages.

    Raises:
        InputError: as `parse`.
    """
    given = {name: options.get(name) for name in _SOURCES}
    default = _defaults(config_class, {name: value and str(value) for name, value in given.items()})
    return _usable(with_options(default, options, source))


def _usable(config: Config) -> Config:
    """Return the options once they are checked and what they name is here."""
    check_values(config)
    config = with_storage(config)
    named = [getattr(config, name, None) for name in ("teacher", "model", "init", "towards")]
    for name in (*named, *getattr(config, "more_teachers", ()), *getattr(config, "runs", ())):
        bring_model(name or "")
    return config


def bring_model(address: str) -> None:
    """Bring a run from the storage of the cluster, if a model is named by its relative path and is not here.

    Raises:
        InputError: the storage cannot be read.
    """
    if "/" in address and ":" not in address:
        bring_run(address)


def _defaults(config_class: type[Config], given: Mapping[str, str | None]) -> Config:
    """Return what options have that are not given: the values of a run, of a file, or the defaults."""
    if given["resume"]:
        bring_run(given["resume"])
        return _of_run(config_class, given["resume"], given["out"])
    if given["config"]:
        bring_run(os.path.dirname(given["config"]))
        try:
            return read_config(config_class, Path(refuse_address(given["config"])))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--config: {error}.") from None
    return config_class()


def _of_run(config_class: type[Config], resume: str, out: str | None) -> Config:
    if "://" not in resume and not has_copy(resume):
        run = Path(resume)
        if not os.path.exists(run / CONFIG_FILE):
            raise InputError(f"--resume {run}: no run there ({CONFIG_FILE} is missing). {ADVICE}")
        return replace(read_config(config_class, run / CONFIG_FILE), out=run)  # type: ignore[type-var]
    run = new_run_dir(Path(out) if out else None, "resumed")
    restore_run(resume, run)
    config: Any = read_config(config_class, run / CONFIG_FILE)
    checkpoint = replace(config.checkpoint, checkpoints=resume)
    resumed: Config = replace(config, out=run, checkpoint=checkpoint)
    return resumed


def _value_of(argv: Sequence[str], name: str) -> str | None:
    flag = f"--{name}"
    for index, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
    return None


def _one_line(boxed: str) -> str:
    """Turn tyro's box (a title, one or more lines on what is wrong, a rule, hints) into one line."""
    lines = [re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", line).strip() for line in boxed.splitlines()]
    title = next((index for index, line in enumerate(lines) if line), 0)
    body = lines[title + 1 :]
    # A rule may follow the title, too.
    start = next((index for index, line in enumerate(body) if line), 0)
    message = " ".join(takewhile(bool, body[start:])) or " ".join(filter(None, lines))
    near = [line.split()[0] for line in body if line.startswith("--")] if "nrecognized" in message else []
    hint = f"Did you mean {near[0]}? " if near else ""
    # tyro puts the name of a section before the errors that the section raises; there is no such flag.
    message = re.sub(r"^Error parsing (?!-)\S+: ", "", message)
    return f"{message.removesuffix('.')}. {hint}--help lists all options."


def run_command(
    config_class: type[Config],
    body: Callable[[Config], Any],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    program: str = "beamclip",
    as_program: bool = False,
) -> int:
    """Parse the options, run the command, and report a failure in a line or two.

    The traceback of an unexpected error goes to <out>/error.log, or to stderr where there is no such folder.

    Args:
        body: what the command does with its configuration.
        description: what --help shows above the options.
        argv: words after the name of the command; by default those of this process.
        program: name of the command in --help.
        as_program: whether this process does nothing else, so that its stderr may be taken over.

    Returns:
        The exit code.
    """
    # The encoding of a terminal may lack the characters of a class or a path.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _sigterm_like_ctrl_c():
        try:
            config = parse(config_class, sys.argv[1:] if argv is None else argv, description, program)
        except InputError as error:
            _print_error(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            _print_error("interrupted")
            return 130
        config = with_folder(config, program.split()[-1])
        with ray_lines_apart() if as_program else contextlib.nullcontext() as ray_lines:
            code = _run(body, config)
            out = getattr(config, "out", None)
            if ray_lines is not None and isinstance(out, Path):
                keep_ray_lines(ray_lines, out)
            # Whoever was refused has no run: the folder, or its place in the storage, may be another's.
            return code if code == 2 else _kept(config, code)


def _run(body: Callable[[Config], Any], config: Config) -> int:
    try:
        with shown_as_stages():
            body(config)
    except InputError as error:
        _print_error(f"error: {error}")
        return 2
    except FailedRunError as error:
        _print_error(f"error: {error}")
        return 1
    except KeyboardInterrupt as stop:
        _print_error(": ".join(["interrupted", *map(str, stop.args)]))
        return 130
    except Exception as error:
        _print_error(f"error: {_summary(error)}{_keep_traceback(getattr(config, 'out', None))}")
        return 1
    return 0


def with_folder(config: Config, command: str) -> Config:
    """Return the options with a place for `out`, where one follows from the storage of the cluster."""
    if storage() is None or getattr(config, "out", "") is not None or command in _FILES:
        return config
    shared = _DEFAULTS_IN_STORAGE.get(command)
    return replace(config, out=in_storage(shared) if shared else new_run_dir(None, command))  # type: ignore[type-var]


def _kept(config: Any, code: int) -> int:
    try:
        keep_folder(config)
    except FailedRunError as error:
        _print_error(f"error: {error}")
        return code or 1
    except KeyboardInterrupt:
        _print_error(f"interrupted: the folder {config.out} is not copied as a whole")
        return 130
    return code


def keep_folder(config: Any) -> None:
    """Copy the folder of a run beside its checkpoints, if these are elsewhere, and say where.

    Raises:
        FailedRunError: something could not be copied.
    """
    out = getattr(config, "out", None)
    given = config.checkpoint.checkpoints if hasattr(config, "checkpoint") else None
    if not isinstance(out, Path) or (given is None and storage() is None):
        return
    copy = keep_whole(checkpoint_address(given, out), out)
    if copy:
        print_stage("kept", copy)


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: schedulers send it before they end a job or take a machine away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if type(error).__module__.startswith("beamclip") else f"{type(error).__name__}: {text}"


def _keep_traceback(out: str | Path | None) -> str:
    """Write the traceback of the current exception; return the line that says where."""
    text = without_secrets(traceback.format_exc())
    if out is None or not os.path.isdir(out):
        _print_error(text.rstrip())
        return ""
    path = Path(out, "error.log")
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # a full disk, say: the error itself is shown all the same
        return f"\n       no details: {path} cannot be written ({error.strerror})"
    return f"\n       details in {path}"


def _print_error(text: str) -> None:
    print(without_secrets(text), file=sys.stderr)
