"""What a person sees while a command runs: named stages, one progress line, a final table."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from beamclip.addresses import without_secrets

NAME_WIDTH = 10
LINE_WIDTH = 78
SECONDS_BETWEEN_LINES = 15.0
REWRITE = "\r\x1b[2K"
"""Takes a terminal back to the start of its line, and empties the line."""


def print_stage(name: str, text: str, note: str = "") -> None:
    """Print one stage: its name, what it is, and a short note at the right edge."""
    left = f"{name:<{NAME_WIDTH}}{text}"
    line = f"{left:<{max(0, LINE_WIDTH - len(note))}}  {note}".rstrip()
    print(without_secrets(line), flush=True)


class _StageHandler(logging.Handler):
    def __init__(self, stage: str) -> None:
        super().__init__(logging.INFO)
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        print_stage(self._stage, record.getMessage())


LOGGED = {
    "beamclip.data.index_pass": "index",
    "beamclip.evaluation.encode": "skipped",
    "beamclip.evaluation.held_out": "skipped",
}
"""Modules whose messages are stages of these names: rooms below the commands print nothing."""


@contextlib.contextmanager
def shown_as_stages() -> Iterator[None]:
    """Inside, print what the modules of LOGGED say as stages."""
    with contextlib.ExitStack() as stack:
        for module, stage in LOGGED.items():
            stack.enter_context(_shown_as_stage(logging.getLogger(module), _StageHandler(stage)))
        yield


@contextlib.contextmanager
def _shown_as_stage(log: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    # Else whichever library set up the root logger prints it once more, in its own format.
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagates
        log.setLevel(level)


def plural(number: int, noun: str) -> str:
    """Format a number and its noun: `1 image`, `3,834 images`."""
    plural = noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def format_duration(seconds: float) -> str:
    """Format seconds as `0:08`, `12:31` or `1:02:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: float, interval: tuple[float, float] | None = None) -> str:
    """Format a fraction: 0.141 is `14.1 %`, and with its interval `14.1 % (12.5 to 15.6)`."""
    ends = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f} %{ends}"


class _ProgressOnly(io.TextIOBase):
    """A stream that shows what a ProgressLine writes, after the name of a stage, and keeps the rest."""

    def __init__(self, line: "ProgressLine", kept: TextIO, name: str) -> None:
        self.line, self.kept, self.name = line, kept, name

    def isatty(self) -> bool:
        """Say yes, so that a ProgressLine marks its texts; `line` knows whether there is a terminal."""
        return True

    def write(self, text: str) -> int:
        if text.startswith(REWRITE):
            self.line.show(f"{self.name:<{NAME_WIDTH}}{text.removeprefix(REWRITE)}")
        else:
            self.kept.write(text)
        return len(text)

    def flush(self) -> None:
        self.kept.flush()


@contextlib.contextmanager
def progress_only(name: str, log: Path) -> Iterator[None]:
    """Inside, of all that is printed only progress lines are shown; the rest goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Without a terminal, only a stage that takes its time shows how far it is.
    line = ProgressLine(sys.stdout, seconds_between_lines=60)
    line.printed_at = time.monotonic()
    line.show(f"{name:<{NAME_WIDTH}}...")
    with log.open("a", encoding="utf-8") as kept:
        try:
            with contextlib.redirect_stdout(_ProgressOnly(line, kept, name)):
                yield
        finally:
            line.clear()


class ProgressLine:
    """One line that is rewritten in place on a terminal, and printed now and then elsewhere."""

    def __init__(
        self, stream: TextIO | None = None, seconds_between_lines: float = SECONDS_BETWEEN_LINES
    ) -> None:
        self.stream = stream or sys.stdout
        self.seconds_between_lines = seconds_between_lines
        self.live = self.stream.isatty()
        self.printed_at = 0.0
        self.open = False

    def show(self, text: str, *, last: bool = False) -> None:
        """Show the newest text; `last` prints it even if the line before was printed just now."""
        if self.live:
            self.stream.write(f"{REWRITE}{text}")
            self.open = True
        elif last or time.monotonic() - self.printed_at > self.seconds_between_lines:
            self.stream.write(f"{text}\n")
            self.printed_at = time.monotonic()
        self.stream.flush()

    def clear(self) -> None:
        """Empty the line, so that further output takes its place."""
        if self.open:
            self.stream.write(REWRITE)
            self.stream.flush()
        self.open = False

    def close(self) -> None:
        """End the line, so that further output starts below it."""
        if self.open:
            self.stream.write("\n")
            self.stream.flush()
        self.open = False


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns, the first row as the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if index == 0:
            print("  ".join("-" * w for w in widths))
