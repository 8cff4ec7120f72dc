"""Checkpoints beside the training: a copy of the state is taken at once, and written by another thread."""

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import NoneType, TracebackType
from typing import Any

from torch import Tensor

from beamclip.training.checkpoint import State, write_checkpoint
from beamclip.training.checkpoint_store import Manifest, cause_of, prune

log = logging.getLogger(__name__)

_PLAIN = (bool, int, float, str, bytes, NoneType)


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time.

    The error of a write that failed is raised by each later call until the writer is closed.
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
        """Args:
        address, keep: see `prune`, which follows each write.
        world_size, data: see `write_checkpoint`.
        on_written: called from the writing thread after each write, with the seconds it took; what it
            raises counts as a failure of the write.
        """
        self._address = address
        self._keep = keep
        self._world_size = world_size
        self._data = data
        self._on_written = on_written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def submit(self, state: State, loss: float | None) -> None:
        """Wait for the write in progress, copy the state, and begin to write it.

        Raises:
            Exception: of an earlier write.
        """
        if self._writing is not None:
            self._writing.result()
        self._writing = self._thread.submit(self._write, snapshot(state), loss)

    def check(self) -> None:
        """Raise the error of a write that ended; one in progress is not waited for."""
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

    def _write(self, state: State, loss: float | None) -> None:
        begun = time.monotonic()
        manifest = write_checkpoint(
            self._address, state, loss=loss, world_size=self._world_size, data=self._data
        )
        seconds = time.monotonic() - begun
        prune(self._address, self._keep, written=manifest.step)
        self._on_written(manifest, seconds)


def snapshot(state: State) -> State:
    """A copy in CPU memory, which training does not change; tensors that shared memory no longer do.

    Raises:
        TypeError: a value is neither a tensor nor plain, and could be written but not read again.
    """
    copied: State = _copied(state, "state")
    return copied


def _copied(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # Of its own type: a module's state_dict carries the versions of its layers as an attribute.
        rebuilt = copy.copy(value)
        for key, item in value.items():
            rebuilt[key] = _copied(item, f"{where}[{key!r}]")
        return rebuilt
    if isinstance(value, list | tuple):
        items = [_copied(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) not in _PLAIN:
        raise TypeError(f"{where} is a {type(value).__qualname__}: a checkpoint holds plain values only.")
    return value
