"""Samples of a tar: neighbouring members of one key, read forwards, each within its limit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from beamclip.data.shard_file import Rows, ShardFile, StoreError
from beamclip.data.tar_headers import Headers, Member, members

CLASS_SUFFIX = "cls"
"""Suffix of the member that holds a sample's label alone."""


@dataclass(frozen=True)
class Span:
    """Bytes of a tar that hold whole samples."""

    row: int = 0
    """Number of the first of them."""
    first: int = 0
    """Byte at which it begins."""
    stop: int | None = None
    """Byte at which the last of them ends; None: wherever the tar does."""


WHOLE = Span()

Contents = dict[str, bytes | None]
"""What was read of a sample's members, by suffix; None for one over its limit."""


def tar_samples(
    file: ShardFile,
    limits: Mapping[str, int],
    rows: Rows,
    images: tuple[str, ...],
    span: Span = WHOLE,
) -> Iterator[tuple[str, Contents]]:
    """Key and contents of each sample that is asked for; the others stay unread.

    Args:
        limits: suffixes of the wanted members, and bytes at most of each; a text is cut there.
        rows: numbers of the wanted samples.
        images: those of the suffixes of which a sample needs one.
        span: what of the tar is read; no sample outside is asked for.

    Raises:
        Exception: of tarfile, where the tar breaks off; the whole samples before it were yielded.
        StoreError: the file cannot be read.
    """
    asked = iter(np.asarray(rows).tolist())
    index, key, contents, number = span.row, "", Contents(), next(asked, None)
    file.seek(span.first)
    headers, broken = Headers(file), None
    try:
        for member in members(headers):
            stem, suffix = _split(member.name)
            if key and stem != key:
                if index == number:
                    yield key, contents
                    contents, number = {}, next(asked, None)
                if number is None:
                    return
                index += 1
            key = stem
            if index == number and suffix in limits:
                contents[suffix] = _content(file, member, limits[suffix], cut=suffix == "txt")
    except StoreError:
        raise
    except Exception as error:  # TarError for most damage; RecursionError, ValueError and others for the rest
        broken = error
    if key and index == number and (_is_whole(contents, limits, images) or headers.ended_as_a_tar):
        yield key, contents
    if broken is not None:
        raise broken


def sample_starts(file: ShardFile) -> Iterator[int]:
    """The byte at which each sample begins, as `tar_samples` counts them, and where the last one ends.

    Raises:
        Exception: see `tar_samples`; the samples before the break were yielded.
    """
    key, end = "", 0
    for member in members(Headers(file)):
        stem, _ = _split(member.name)
        if stem != key:
            yield member.start
        key, end = stem, member.end
    yield end


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member: a suffix is all behind the first dot of the file's name."""
    folder_end = name.rfind("/") + 1
    stem, _, suffix = name[folder_end:].partition(".")
    return name[:folder_end] + stem, suffix.lower()


def _is_whole(contents: Contents, limits: Mapping[str, int], images: tuple[str, ...]) -> bool:
    """Whether a sample at a break has all that was asked for: an image, and each of the other members.

    Where labels are fields of a JSON, there is no member for the label alone.
    """
    has_image = any(suffix in contents for suffix in images)
    others = [suffix for suffix in limits if suffix not in images and suffix != CLASS_SUFFIX]
    return has_image and all(suffix in contents for suffix in others)


def _content(file: ShardFile, member: Member, limit: int, *, cut: bool) -> bytes | None:
    if member.place + member.size > file.size:
        raise EOFError(f"{member.name} is cut off: {member.size} bytes in its header")
    if member.size > limit and not cut:
        return None
    file.seek(member.place)
    return file.read(min(member.size, limit))
