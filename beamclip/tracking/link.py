"""The connection from a run to its MLflow store, which may fail and come back."""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import replace

from beamclip.addresses import without_secrets
from beamclip.tracking.store import Event, Refused, RunRecord, Store, first_line
from beamclip.tracking.unsent import UnsentFile, batched, send_events

log = logging.getLogger("beamclip.tracking")

RETRY_AFTER_S = 60.0
"""Seconds between two tries to reach a store that did not answer; a try may take a few seconds."""


class Link:
    """The connection to the store; while it is down, events go to a file. Its methods raise nothing."""

    def __init__(self, uri: str, unsent: UnsentFile, run: RunRecord) -> None:
        self.run = run
        self.give_up_at = math.inf
        self.uri = uri
        self._unsent = unsent
        self._store: Store | None = None
        self._retry_at = -math.inf
        self._warned: set[str] = set()

    def open(self) -> Store | None:
        """Return the store, or None while it is down; tries to reach it at most once in `RETRY_AFTER_S`."""
        if self._store is None and time.monotonic() >= self._retry_at:
            try:
                store = Store(self.uri)
                self.run = self._reach(store)
                self._store = store
            except Exception as error:
                self._close(error)
        return self._store

    def deliver(self, events: Iterable[Event]) -> None:
        """Send events, or keep them in the run directory."""
        pending = batched(events)
        store = self.open() if pending and time.monotonic() < self.give_up_at else None
        if store is not None and self.run.id is not None:
            try:
                send_events(store, self.run.id, pending, self._warn_refused, until=self.give_up_at)
            except Exception as error:
                self._close(error)
        if pending:
            self._keep(pending)

    def warn(self, subject: str, message: str) -> None:
        """Log a warning, the first time that its subject comes up in this run."""
        if subject not in self._warned:
            self._warned.add(subject)
            # An address may carry a password, and MLflow quotes addresses.
            log.warning("%s", without_secrets(f"MLflow at {self.uri}: {message}"))

    def _warn_refused(self, message: str) -> None:
        self.warn("refused", message)

    def _reach(self, store: Store) -> RunRecord:
        if self._unsent.path.exists():
            return self._unsent.send(store, self._warn_refused, until=self.give_up_at)
        try:
            return replace(self.run, id=store.open_run(self.run))
        except Refused as reason:
            if self.run.id is None:
                raise
            self.warn("new run", f"{reason}. The run goes on as a new one.")
            new = replace(self.run, id=None)
            return replace(new, id=store.open_run(new))

    def _close(self, error: Exception) -> None:
        self._store = None
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        self.warn(
            "closed",
            f"{first_line(error)}. The run goes on; what is not sent is kept in {self._unsent.path}. "
            f"To send it later: python -m beamclip.tracking replay {self._unsent.path.parent}",
        )

    def _keep(self, events: Iterable[Event]) -> None:
        try:
            self._unsent.append(self.run, events)
        except OSError as error:
            self.warn("lost", f"records are lost, as {self._unsent.path} cannot be written: {error}")
