"""The place that all machines of a cluster share: shards, caches, checkpoints and results go there.

BEAMCLIP_STORAGE holds an address (s3://bucket/beamclip) or a folder that all machines mount. With it:

- Relative `--data`, `--eval-data`, `--checkpoints` and the like start there: `--data shards` is the same
  place on every machine. Without `--out`, an ingest writes to `shards` there, and a cache to `cache`.
- The checkpoints of a run in the folder `runs/x` go to `runs/x` there. When the command ends, its folder is
  copied to `runs/x/run`.
- A run that is not on this machine is brought from there if it is named, as by `--teacher runs/x`.
"""

import os
import posixpath
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from beamclip.errors import InputError
from beamclip.places import is_address

Config = TypeVar("Config")

VARIABLE = "BEAMCLIP_STORAGE"
COPY = "run"
"""Name of the copy of a run's folder, beside its checkpoints."""
SHARED = frozenset(("data", "folder", "eval_data", "val_data", "train_data", "context_data", "checkpoints"))
"""Options that name what several machines read or write; `out` is one of them where it may be an address."""


def storage() -> str | None:
    """Return the shared place of this cluster, without a slash at its end; None without one."""
    return os.environ.get(VARIABLE, "").strip().rstrip("/") or None


def in_storage(place: str) -> str:
    """Return a relative path as a place below the storage; anything else, or without a storage, as it is.

    Raises:
        InputError: it leads out of the storage.
    """
    shared = storage()
    if shared is None or is_address(place) or Path(place).expanduser().is_absolute():
        return place
    inside = posixpath.normpath(place)
    if inside.startswith(".."):
        raise InputError(f"{place}: leads out of {shared}, where relative places start. Give a whole path.")
    return posixpath.join(shared, inside)


def with_storage(config: Config) -> Config:
    """Return the options with those that several machines read or write below the storage."""
    if storage() is None:
        return config
    changed: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            changed[item.name] = with_storage(value)
        elif item.name in SHARED or (item.name == "out" and isinstance(value, str)):
            changed[item.name] = _below(value)
    return replace(config, **changed)  # type: ignore[type-var]


def _below(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_below, value))
    return in_storage(value) if isinstance(value, str) else value


def stored_run(run_dir: Path) -> str | None:
    """Return where the storage keeps the checkpoints of the run in a folder; None without a storage."""
    if storage() is None:
        return None
    here = Path(os.path.normpath(run_dir.absolute()))
    if here.is_relative_to(Path.cwd()):
        return in_storage(str(here.relative_to(Path.cwd())))
    # Two folders of one name elsewhere are two runs.
    return in_storage(posixpath.join("runs", "-".join(here.parts[1:])))
