"""Write the folder of an export: it appears whole or not at all."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.files import write_whole
from beamclip.summary import SUMMARY_FILE


@dataclass(frozen=True)
class Layout:
    """What the folder of an export may hold."""

    marker: str
    """A file that every export of the format holds."""
    others: tuple[str, ...] = ()
    """Names of the other files and folders."""


def check_replaceable(out: Path, layout: Layout) -> None:
    """Refuse a place that holds anything but a former export.

    Raises:
        InputError: out is a file, or a directory that is not empty and lacks the marker or holds something
            that no export of the format has written.
    """
    # Replacing deletes: only a former export or an empty directory may go.
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / layout.marker).is_file():
        raise InputError(
            f"{out}: exists and is not an exported model (it has no {layout.marker}). Name another directory."
        )
    known = {layout.marker, *layout.others, SUMMARY_FILE}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in known)
    if foreign:
        raise InputError(
            f"{out}: holds {', '.join(foreign[:3])}{', ...' if foreign[3:] else ''} beside the model, which "
            "replacing the model would delete. Move it, or name another directory."
        )


def write_folder(out: Path, layout: Layout, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new directory, then move it to `out`; if `write` raises, nothing is left behind.

    Returns:
        out.

    Raises:
        InputError: out holds something other than a former export, or cannot be written.
    """
    check_replaceable(out, layout)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}). Name another directory.") from error
    with scratch:
        staged = Path(scratch.name) / "new"
        staged.mkdir()
        write(staged)
        old = Path(scratch.name) / "old"
        if out.exists():
            out.rename(old)
        try:
            staged.rename(out)
        except OSError:
            # With the scratch folder, the former export would go too.
            if old.exists():
                old.rename(out)
            raise
    return out


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the weights of a network as safetensors, in one step."""
    # safetensors takes neither other memory formats nor views, nor one tensor under two names.
    state: dict[str, Tensor] = {}
    written: set[int] = set()
    for key, value in model.state_dict().items():
        whole = value.detach().cpu().contiguous()
        state[key] = whole.clone() if whole.data_ptr() in written else whole
        written.add(whole.data_ptr())
    write_whole(file, lambda draft: save_file(state, draft, metadata={"format": "pt"}))
