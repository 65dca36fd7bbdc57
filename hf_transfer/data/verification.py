"""Checks of samples before anything slow begins: whether they can be read, and whether splits share some."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.pictures import BadImageError, check_header, content, content_size, decode
from hf_transfer.data.rows import describe_row, encoded_image, is_given, texts_of
from hf_transfer.data.splits import Split, part_of
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.settings.run import RunConfig

MAX_BAD_SHARE = 0.01
LISTED_SAMPLES = 5
# As `content_size` has it; a pair may have no image.
NO_IMAGE = -1
# The size of an image, and the text or the texts beside it; None: there are none.
Group = tuple[int, tuple[str | None, ...] | None]
Groups = dict[Group, list[int]]


def bad_images(split: Split, config: RunConfig) -> dict[int, str]:
    """The rows whose image cannot be read, each with the reason; the result is cached until an image changes.

    The header of every image is read. `verify_samples` images are decoded, drawn at random if there are more.
    """
    generator = np.random.default_rng(config.data.split_seed)
    decoded = set(generator.permutation(split.rows)[: config.data.verify_samples].tolist())
    key = hashlib.sha256(image_fingerprint(split).encode())
    key.update(np.asarray(sorted(decoded), dtype=np.int64).tobytes())
    cached = cache_folder(config.store.cache_dir) / "verified" / f"{key.hexdigest()}.json"
    if cached.is_file():
        return {int(row): reason for row, reason in json.loads(cached.read_text(encoding="utf-8")).items()}
    bad = _check_rows(split, decoded)
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Renamed once it is complete: another process must not read half of it.
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(bad), encoding="utf-8")
    partial.replace(cached)
    return bad


def bad_texts(split: Split) -> dict[int, str]:
    """The rows without a text, each with the reason."""
    faults = zip(split.rows.tolist(), map(fault_of_texts, texts_of(split)), strict=True)
    return {row: fault for row, fault in faults if fault}


def fault_of_texts(texts: Sequence[str | None]) -> str:
    """What a text, or one of a pair, lacks; empty if all have words."""
    if any(text is None for text in texts):
        return "missing"
    if not all(texts):
        return "empty"
    return "" if all(text and text.strip() for text in texts) else "white space only"


def bad_pairs(split: Split, config: RunConfig) -> dict[int, str]:
    """The rows with neither an image nor a text, or with an image that cannot be read, each with the reason."""
    with_image, with_text = is_given(split, "image"), is_given(split, "text")
    bad = dict.fromkeys(split.rows[~(with_image | with_text)].tolist(), "neither an image nor a text")
    return bad | bad_images(part_of(split, np.flatnonzero(with_image)), config)


def refuse_bad_rows(
    bad: Mapping[int, str], split: Split, split_name: str, settings: DataSettings, *, usable: str, unusable: str
) -> None:
    """Refuse rows that cannot be used, unless they are to be masked.

    Args:
        bad: these rows, each with the reason.
        split: that they are in.
        split_name: of the split.
        settings: whether such rows are masked.
        usable: what all rows are expected to be ("images that can be read").
        unusable: what these rows are ("that cannot be read").

    Raises:
        UserError: with `on_bad_sample="error"` for any such row, with `"skip"` above 1 % of the rows.
    """
    if bad and settings.on_bad_sample == "error":
        raise user_error(
            expected=f"{usable} in split '{split_name}'",
            found=f"{len(bad)} {unusable}: {_list(bad, split)}",
            do="fix or remove them, or mask them with --on_bad_sample skip",
        )
    refuse_bad_share(bad, split, split_name)


def refuse_bad_share(bad: Mapping[int, str], split: Split, split_name: str) -> None:
    """Refuse to mask more than 1 % of a split: so many are hardly an accident."""
    if len(bad) > MAX_BAD_SHARE * len(split):
        raise user_error(
            expected=f"at most {MAX_BAD_SHARE:.0%} bad samples in split '{split_name}' with --on_bad_sample skip",
            found=f"{len(bad)} of {len(split)}: {_list(bad, split)}",
            do="fix or remove these samples",
        )


def copies(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have an exact copy in training.

    A copy has the same image, the same text, or both, as far as samples have them. Only images of rows that agree in
    their text and in the size of their image are read and hashed.
    """
    groups = {name: _by_size_and_text(split) for name, split in splits.items()}
    counts = {}
    for name in ("validation", "test"):
        shared = groups["train"].keys() & groups[name].keys()
        known = set(_digests(splits["train"], groups["train"], shared))
        counts[name] = sum(digest in known for digest in _digests(splits[name], groups[name], shared))
    return counts


def _check_rows(split: Split, decoded: set[int]) -> dict[int, str]:
    def problem(row: int) -> str | None:
        check: Callable[[dict[str, Any]], object] = decode if row in decoded else check_header
        try:
            check(encoded_image(split, row))
        except BadImageError as error:
            return str(error)
        return None

    rows = split.rows.tolist()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return {row: reason for row, reason in zip(rows, pool.map(problem, rows), strict=True) if reason is not None}


def _list(bad: Mapping[int, str], split: Split) -> str:
    listed = [f"{describe_row(split, row)} ({bad[row]})" for row in sorted(bad)[:LISTED_SAMPLES]]
    more = len(bad) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


def image_fingerprint(split: Split) -> str:
    """A hash that changes with any image of a split; a file counts as changed by its size or its time of change."""
    key = hashlib.sha256(f"{split.dataset._fingerprint}{split.rows.tolist()}".encode())
    # In Arrow's own columns: reading a million rows one by one would take minutes.
    images = split.dataset.with_format("arrow")[:]["image"]
    sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes")).take(split.rows)
    paths = pyarrow.compute.struct_field(images, "path").take(split.rows)
    for path, size in zip(paths.to_pylist(), sizes.to_pylist(), strict=True):
        if size is None and path and Path(path).is_file():
            status = Path(path).stat()
            key.update(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode())
        else:
            key.update(f"{size}".encode())
    return key.hexdigest()


def _by_size_and_text(split: Split) -> Groups:
    """The rows that can be read, by what is known before an image is: its size, and the text of the row."""
    # Not each modality has texts.
    texts = dict(zip(split.rows.tolist(), texts_of(split), strict=False))
    groups: Groups = defaultdict(list)
    with_images = "image" in split.dataset.column_names
    for row in split.rows[split.counted].tolist():
        size = content_size(encoded_image(split, row)) if with_images else NO_IMAGE
        groups[size, texts.get(row)].append(row)
    return groups


def _digests(split: Split, groups: Groups, shared: Iterable[Group]) -> list[tuple[Group, bytes]]:
    """Group and hash of the image for all rows of the shared groups."""

    def digest(member: tuple[Group, int]) -> tuple[Group, bytes]:
        group, row = member
        encoded = b"" if group[0] == NO_IMAGE else content(encoded_image(split, row))
        return group, hashlib.blake2b(encoded, digest_size=16).digest()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(digest, [(group, row) for group in shared for row in groups[group]]))
