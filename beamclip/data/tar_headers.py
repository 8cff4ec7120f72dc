"""The members of a tar: common headers are read here, in a tenth of tarfile's time, all others by tarfile.

What is common: regular files with a name of ASCII or UTF-8 and a size in octal digits, with or without an
extended header (pax) before them. At the first header that is anything else, or that is damaged, tarfile
takes over for the rest, so that there is one authority on all that is odd.
"""

import tarfile
from collections.abc import Generator, Iterator
from typing import NamedTuple

from beamclip.data.shard_file import ShardFile

HEADER_BYTES = 16 << 10
"""Most bytes in the headers of one member. tarfile reads long names and extended headers whole, whatever size
they claim."""

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    start: int
    """Byte at which its headers begin."""
    place: int
    """Byte at which its content begins."""
    size: int

    @property
    def end(self) -> int:
        """Byte at which the next member begins."""
        return self.place + _padded(self.size)


class Headers:
    """The file as tarfile sees it: of each member, no more than a header's worth."""

    def __init__(self, file: ShardFile) -> None:
        self.file = file
        self.left = HEADER_BYTES
        """Bytes that tarfile may still read for the member it is at."""
        self.ended_as_a_tar = False
        """Whether the tar, or the part of it that was read, ended between two members."""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Return `size` bytes for tarfile; raise ReadError beyond the limit of the member's header."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {HEADER_BYTES} bytes")
        self.left -= size
        data = self.file.read(size)
        self.ended_as_a_tar = data == _END
        return data


def members(headers: Headers) -> Iterator[Member]:
    """Yield the regular files that are not hidden, from the place of the file on.

    Raises:
        Exception: of tarfile, where the tar breaks off.
        StoreError: the file cannot be read.
    """
    place = yield from _common_members(headers.file)
    if place is None:
        headers.ended_as_a_tar = True
        return
    headers.file.seek(place)
    tar = tarfile.TarFile(fileobj=headers)  # type: ignore[arg-type]
    while (member := tar.next()) is not None:
        # tarfile remembers every header; a shard of 10,000 samples has 30,000
        tar.members = []  # type: ignore[attr-defined]
        headers.left = HEADER_BYTES
        if member.size < 0 or tar.offset < member.offset_data:
            # Some versions of tarfile would go back, and round and round.
            raise tarfile.ReadError(f"{member.name} has the size {member.size}")
        if member.isfile() and not member.issparse() and not _is_hidden(member.name):
            yield Member(member.name, member.offset, member.offset_data, member.size)
    headers.ended_as_a_tar |= headers.file.at_end_of_part
    if not headers.ended_as_a_tar:
        raise EOFError("it breaks off, or a header in it is damaged")


def _is_hidden(name: str) -> bool:
    # As webdataset does, hidden files are passed over: macOS adds one for each file.
    return name.rpartition("/")[2].startswith(".")


def _common_members(file: ShardFile) -> Generator[Member, None, int | None]:
    """Yield members until a header is not common; return its byte, or None at the end."""
    place = file.tell()
    while True:
        if place > file.size:
            return place
        file.seek(place)
        if file.at_end_of_part:
            return None
        block = file.read(_BLOCK)
        if block == _END:
            return None
        member = _common_member(file, place, block)
        if member is None:
            return place
        if not _is_hidden(member.name):
            yield member
        place = member.end


def _common_member(file: ShardFile, start: int, block: bytes) -> Member | None:
    place, extended = start, dict[bytes, bytes]()
    if block[156:157] == tarfile.XHDTYPE:
        size = _octal(block[124:136])
        if size is None or not 0 < size <= HEADER_BYTES - 2 * _BLOCK or not _sums_up(block):
            return None
        found = _records(file.read(_padded(size))[:size])
        if found is None:
            return None
        place, extended, block = start + _BLOCK + _padded(size), found, file.read(_BLOCK)
    if block[156:157] not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not _sums_up(block):
        return None
    own_name = _name(block)
    name = _text(extended.get(b"path", own_name))
    size = _octal(block[124:136]) if b"size" not in extended else _decimal(extended[b"size"])
    # To tarfile, a name that ends so is that of a folder.
    if name is None or size is None or own_name.endswith(b"/") or name.endswith("/"):
        return None
    return Member(name, start, place + _BLOCK, size)


def _records(data: bytes) -> dict[bytes, bytes] | None:
    """Return the records of an extended header; None if they say more than a name, a size and times."""
    found = dict[bytes, bytes]()
    while data:
        length = _decimal(data.partition(b" ")[0])
        if length is None or not 0 < length <= len(data) or data[length - 1 : length] != b"\n":
            return None
        key, equals, value = data[: length - 1].partition(b" ")[2].partition(b"=")
        if not equals or key.startswith(b"GNU.sparse") or key == b"hdrcharset":
            return None
        found[key] = value
        data = data[length:]
    return found


def _name(block: bytes) -> bytes:
    name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
    return prefix + b"/" + name if prefix else name


def _text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _octal(field: bytes) -> int | None:
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _decimal(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() and len(digits) < 20 else None


def _sums_up(block: bytes) -> bool:
    """Whether a header is whole, and not damaged."""
    if len(block) < _BLOCK:
        return False
    return sum(block) - sum(block[148:156]) + 8 * ord(" ") == _octal(block[148:156])


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
