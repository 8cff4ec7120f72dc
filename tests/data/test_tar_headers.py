"""Headers that are read here against tarfile, which reads all of them where the other way is shut."""

import io
import random
import tarfile
from typing import Any

import pytest

from beamclip.data import tar_headers
from beamclip.data.shard_file import ShardFile
from beamclip.data.tar_headers import Headers, Member, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ["a.png", "b/c.txt", "./d.json", "._e.png", "f/", "gé.jpg", "h" * 99 + ".png", "i/" * 60 + "j.png"]
KINDS = [
    tarfile.REGTYPE,
    tarfile.REGTYPE,
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
]


def random_tar(seed: int, tar_format: int) -> bytes:
    """A tar of a few members of any kind, one in three with a time that needs an extended header in pax."""
    dice, file = random.Random(seed), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for _ in range(dice.randrange(8)):
            member = tarfile.TarInfo(dice.choice(NAMES))
            member.type = dice.choice(KINDS) if seed % 2 else tarfile.REGTYPE
            content = dice.randbytes(dice.choice([0, 1, 511, 512, 513, 2000]))
            member.size = len(content) if member.isreg() else 0
            member.mtime = dice.choice([0, 1_700_000_000, 1_700_000_000.25])
            if tar_format == tarfile.PAX_FORMAT and dice.random() < 0.1:
                member.pax_headers = {"comment": "any", "SCHILY.xattr.user": "x=y"}
            try:
                tar.addfile(member, io.BytesIO(content))
            except ValueError:  # ustar has no room for some names
                continue
    return file.getvalue()


def read(data: bytes) -> tuple[list[Member], bool, type | None]:
    """What is found in a tar, whether it ended as one, and the kind of error that ended it."""
    headers, found = Headers(ShardFile(io.BytesIO(data), len(data))), list[Member]()
    try:
        for member in members(headers):
            found.append(member)
    except Exception as error:
        return found, headers.ended_as_a_tar, type(error)
    return found, headers.ended_as_a_tar, None


def read_by_tarfile(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Any:
    def nothing(file: ShardFile) -> Any:
        return file.tell()
        yield

    with monkeypatch.context() as patch:
        patch.setattr(tar_headers, "_common_members", nothing)
        return read(data)


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
def test_whole_tars_have_the_members_that_tarfile_finds(
    monkeypatch: pytest.MonkeyPatch, tar_format: int
) -> None:
    counts = 0
    for seed in range(60):
        data = random_tar(seed, tar_format)
        found = read(data)
        assert found == read_by_tarfile(data, monkeypatch), seed
        counts += len(found[0])
    assert counts > 100


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
def test_damaged_tars_have_the_members_and_the_error_that_tarfile_finds(
    monkeypatch: pytest.MonkeyPatch, tar_format: int
) -> None:
    dice = random.Random(1)
    for seed in range(150):
        data = bytearray(random_tar(seed % 30, tar_format))
        if not data:
            continue
        for _ in range(dice.choice([0, 1, 1, 3])):
            # Within a header, where it matters.
            block = 512 * dice.randrange(len(data) // 512)
            data[min(len(data) - 1, block + dice.randrange(512))] = dice.randrange(256)
        if dice.random() < 0.5:
            del data[dice.randrange(len(data)) :]
        assert read(bytes(data)) == read_by_tarfile(bytes(data), monkeypatch), seed


def test_common_headers_are_not_left_to_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    tars = []
    for tar_format in FORMATS.values():
        tars.append(io.BytesIO())
        with tarfile.open(fileobj=tars[-1], mode="w", format=tar_format) as tar:
            for number in range(3):
                member = tarfile.TarInfo(f"{number}.png")
                member.size, member.mtime = 3, 1_700_000_000.5
                tar.addfile(member, io.BytesIO(b"abc"))
    monkeypatch.setattr(tarfile, "TarFile", None)
    for file in tars:
        found, ended, error = read(file.getvalue())
        assert ([member.name for member in found], ended, error) == (["0.png", "1.png", "2.png"], True, None)
