"""Where files lie: paths of this machine, and addresses of any fsspec file system (s3://, gs://, https://).

Options that take a place have one of two types, `PathOrAddress` or `LocalPath`. `--help` shows which, and a
local path refuses an address, whether a flag or a YAML file gives it.
"""

import contextlib
import posixpath
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import fsspec
import pydantic
from fsspec.implementations.local import LocalFileSystem
from tyro.constructors import PrimitiveConstructorSpec

from beamclip.errors import InputError
from beamclip.files import write_whole

TORCHVISION = "torchvision:"
"""Begins the address of a data set of torchvision; see data.torchvision_sets."""

# One slash is left where an address went through Path(); C:\ is a path.
_ADDRESS = re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]+:/|[A-Za-z0-9+.\-]+::|{TORCHVISION}")
_ROOT = re.compile(r"(?<=[?&]root=)[^&]+")
_LOCAL = re.compile(r"(?:file|local):/+")


def is_address(place: str | Path) -> bool:
    """Whether this is an address of some file system, and not a path of this machine."""
    return bool(_ADDRESS.match(str(place)))


def absolute(place: str | Path) -> str:
    """Return an address as it is, and a path as an absolute one; `file:///a` is the path `/a`.

    Of a data set of torchvision, the folder with its files becomes absolute.
    """
    place = _LOCAL.sub("/", str(place), count=1)
    if place.startswith(TORCHVISION):
        return _ROOT.sub(lambda root: str(Path(root[0]).expanduser().absolute()), place)
    return place if is_address(place) else str(Path(place).expanduser().absolute())


def refuse_address(place: Any) -> Any:
    """Return a path of this machine, or None, as it is.

    Raises:
        ValueError: it is an address.
    """
    if is_address(place):
        raise ValueError(f"{place} is an address, and only a path of this machine works here")
    return place


def _local_path(words: list[str]) -> Path | None:
    return None if words[0] == "None" else Path(refuse_address(words[0]))


LocalPath = Annotated[
    Path | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_local_path,
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    ),
    pydantic.BeforeValidator(refuse_address),
]
"""Type of an option that takes a path of this machine, or None."""

Places = Annotated[
    tuple[
        Annotated[
            str,
            PrimitiveConstructorSpec(
                nargs=1,
                metavar="PATH|ADDRESS",
                instance_from_str=lambda words: words[0],
                is_instance=lambda value: isinstance(value, str | Path),
                str_from_instance=lambda value: [str(value)],
            ),
        ],
        ...,
    ],
    pydantic.BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""Type of an option that takes paths of this machine or fsspec addresses; a file may give one as a text."""

PathOrAddress = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|ADDRESS",
        instance_from_str=lambda words: None if words[0] == "None" else words[0],
        is_instance=lambda value: value is None or isinstance(value, str | Path),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""Type of an option that takes a path of this machine or an fsspec address, or None."""


@dataclass(frozen=True)
class Folder:
    """Files in one folder, or below one prefix of a bucket, which does not exist while it is empty."""

    place: str
    """Path or address."""

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system that holds the folder."""
        return fsspec.core.url_to_fs(self.place)[0]

    @cached_property
    def is_local(self) -> bool:
        """Whether the folder is in this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the path by which the file system knows a file in this folder."""
        return posixpath.join(fsspec.core.url_to_fs(self.place)[1], name)

    def join(self, name: str) -> "Folder":
        """Return the folder of this name in this one."""
        return Folder(posixpath.join(self.place, name))

    def prepare(self, option: str) -> None:
        """Make the folder, and write and remove a small file in it.

        Raises:
            InputError: the file system is unknown, or nothing can be written; the message names `option`.
        """
        try:
            self.fs.makedirs(self.path(""), exist_ok=True)
            probe = self.path(f".probe-{uuid4().hex}")
            self.fs.pipe_file(probe, b"probe")
            self.fs.rm_file(probe)
        except Exception as error:  # each file system has errors of its own; to the user all are one
            raise InputError(
                f"{option} {self.place}: cannot be written to: {one_line(error)}. Give another place."
            ) from error

    def names(self) -> set[str]:
        """Return the names of the files and folders in this folder; none if it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path(""), detail=False)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(path.rstrip("/")) for path in found}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        try:
            content: bytes = self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one step: a reader sees the old file or the new one, never a part."""
        if not self.is_local:  # a bucket shows an object once it is whole
            self.fs.pipe_file(self.path(name), content)
            return
        write_whole(Path(self.path(name)), lambda path: path.write_bytes(content))

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))


def one_line(error: BaseException) -> str:
    """Return the text of an error, in one line without a full stop."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return said[:300].rstrip(".")
