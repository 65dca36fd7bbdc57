"""What tells pictures apart without a look into them: names, sizes and times of files, or rows of a data set."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute

from hf_transfer.data.splits import Split

# One number for each picture; 0: there is none.
Identities = npt.NDArray[np.uint64]
NO_PICTURE = 0


def identities_of(split: Split) -> Identities:
    """The identity of the picture of each row [rows].

    That of a file changes with its path, its size and the time of its change, that of an embedded picture with the data
    set, the row and its size. Of 64 bits: that any two of a million pictures share one has a chance of 3 in 10^8.
    """
    # In Arrow's own columns: reading a million rows one by one would take minutes.
    images = split.dataset.with_format("arrow")[:]["image"]
    content, paths = (pyarrow.compute.struct_field(images, name) for name in ("bytes", "path"))
    # Not the rows of the content, which would be copied: an Arrow array of `binary` holds two gigabytes at most.
    lengths = pyarrow.compute.fill_null(pyarrow.compute.binary_length(content), -1).to_numpy()
    sizes = lengths.astype(np.int64)[split.rows]
    start = np.uint64(int.from_bytes(_digest(str(split.dataset._fingerprint))))
    identities = _mixed(_mixed(split.rows.astype(np.uint64) ^ start) ^ sizes.astype(np.uint64))
    for place in np.flatnonzero(sizes < 0).tolist():
        identities[place] = _of_file(paths[int(split.rows[place])].as_py())
    return identities


def image_fingerprint(split: Split) -> str:
    """A hash that changes with any image of a split; a file counts as changed by its size or its time of change."""
    key = hashlib.sha256(f"{split.dataset._fingerprint}{split.rows.tolist()}".encode())
    key.update(identities_of(split).tobytes())
    return key.hexdigest()


def _of_file(path: str | None) -> int:
    if not path:
        return NO_PICTURE
    try:
        status = Path(path).stat()
    except OSError:
        return NO_PICTURE
    return int.from_bytes(_digest(f"{path}|{status.st_size}|{status.st_mtime_ns}")) or 1


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()


def _mixed(numbers: Identities) -> Identities:
    """Numbers of which every bit depends on every bit of those given.

    By the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195).
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
