"""Write checkpoints while training goes on: the state is copied at once, and a thread writes the copy."""

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import NoneType, TracebackType
from typing import Any

from torch import Tensor

from beamclip.training.checkpoint import State, write_checkpoint
from beamclip.training.checkpoint_store import cause_of, prune
from beamclip.training.manifest import Manifest

log = logging.getLogger(__name__)

_PLAIN = (bool, int, float, str, bytes, NoneType)


class CheckpointWriter:
    """Writes checkpoints in a background thread, one at a time.

    If a write fails, every later call raises its error until the writer is closed.
    """

    def __init__(
        self,
        address: str,
        keep: int,
        *,
        world_size: int,
        data: str,
        on_written: Callable[[Manifest, float], None],
    ) -> None:
        """Start the writing thread.

        Args:
            address, keep: see `prune`, which follows each write.
            world_size, data: see `write_checkpoint`.
            on_written: called from the writing thread after each write, with the manifest and the seconds
                it took; if it raises, the write counts as failed.
        """
        self._address = address
        self._keep = keep
        self._world_size = world_size
        self._data = data
        self._on_written = on_written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def submit(self, state: State, loss: float | None, score: float | None = None) -> None:
        """Wait for the write in progress, copy the state, and begin to write it.

        Args:
            loss, score: see `write_checkpoint`.

        Raises:
            TypeError: the state cannot be copied; see `snapshot`.
            Exception: the error of an earlier write.
        """
        if self._writing is not None:
            self._writing.result()
        self._writing = self._thread.submit(self._write, snapshot(state), loss, score)

    def check(self) -> None:
        """Raise the error of a write that has ended; does not wait for one in progress."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def close(self) -> None:
        """Wait for the write in progress, and raise its error."""
        last, self._writing = self._writing, None
        self._thread.shutdown()
        if last is not None:
            last.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            log.warning("%s: the last checkpoint was not written: %s", self._address, cause_of(failure))

    def _write(self, state: State, loss: float | None, score: float | None) -> None:
        begun = time.monotonic()
        manifest = write_checkpoint(
            self._address, state, loss=loss, world_size=self._world_size, data=self._data, score=score
        )
        seconds = time.monotonic() - begun
        prune(self._address, self._keep, written=manifest.step)
        self._on_written(manifest, seconds)


def snapshot(state: State) -> State:
    """Return a copy of the state in CPU memory, in which no tensors share memory.

    Raises:
        TypeError: a value is neither a tensor nor plain: it could be written, but not read back.
    """
    copied: State = _copied(state, "state")
    return copied


def _copied(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # Keep the type: a module's state_dict carries the versions of its layers as an attribute.
        rebuilt = copy.copy(value)
        for key, item in value.items():
            rebuilt[key] = _copied(item, f"{where}[{key!r}]")
        return rebuilt
    if isinstance(value, list | tuple):
        items = [_copied(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value).__qualname__}: a checkpoint holds only tensors and plain values."
        )
    return value
