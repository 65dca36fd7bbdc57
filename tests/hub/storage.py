"""The storage of the clients' Xet protocol for large files, as a folder.

An address of the form local:///FOLDER is not documented; hf_xet 1.8 accepts it. Shards in the folder say which content
has which hash.
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.contents import Elsewhere
from tests.hub.refusals import RefusedError, refuse

if TYPE_CHECKING:
    from tests.hub.answers import Answers

# A shard is rows of 48 bytes: after the first, each file has one with its hash, some more, and one with its sha256.
ROW = 48
VERIFIED, HAS_SHA256 = 1 << 31, 1 << 30


def pass_to(request: "Answers", kind: str, name: str, *, writes: bool) -> tuple[dict[str, object], dict[str, str]]:
    """The address of the storage, for accounts that may read the repository, or write to it."""
    request.writable(kind, name) if writes else request.readable(kind, name)
    if request.hub.xet is None:
        refuse("EntryNotFound")
    address, expires = f"local://{request.hub.xet}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "any", "X-Xet-Token-Expiration": str(expires)}
    return {"casUrl": address, "accessToken": "any", "exp": expires}, headers


def find(folder: Path, sha256: str, size: int) -> Elsewhere:
    """A content in the storage, by its sha256."""
    for shard in folder.rglob("shards/*.mdb"):
        for hash_, sha256_of_file in _files_of(shard.read_bytes()):
            if sha256_of_file == sha256:
                return Elsewhere(sha256, size, hash_)
    raise RefusedError(400, "no such large file has been sent")


def _files_of(shard: bytes) -> Iterator[tuple[str, str]]:
    """Hash and sha256 of each file of a shard."""
    place = ROW
    while len(header := shard[place : place + ROW]) == ROW and header[:32] != b"\xff" * 32:
        flags, rows = struct.unpack_from("<II", header, 32)
        place += ROW * (1 + rows + (rows if flags & VERIFIED else 0))
        if flags & HAS_SHA256:
            yield _in_order(header), _in_order(shard[place : place + ROW])
            place += ROW


def _in_order(row: bytes) -> str:
    """A hash, which is stored as four numbers, lowest byte first."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", row))
