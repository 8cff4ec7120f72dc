"""Write the folder of an export: it appears whole or not at all."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.files import write_whole


def check_replaceable(out: Path, marker: str) -> None:
    """Refuse a place that holds anything but a former export.

    Args:
        marker: a file that every export of the format holds.

    Raises:
        InputError: out is a file, or a directory that is not empty and lacks the marker.
    """
    # Replacing deletes: only a former export, known by its marker, or an empty directory may go.
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise InputError(
            f"{out}: exists and is not an exported model (it has no {marker}). Name another directory."
        )


def write_folder(out: Path, marker: str, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new directory, then move it to `out`; if `write` raises, nothing is left behind.

    Args:
        marker: see check_replaceable.

    Returns:
        out.

    Raises:
        InputError: out holds something other than a former export, or cannot be written.
    """
    check_replaceable(out, marker)
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
