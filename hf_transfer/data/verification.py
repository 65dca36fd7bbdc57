"""Checks of samples before anything slow begins: whether they can be read, and whether splits share some."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
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

MAX_BAD_SHARE = 0.01
LISTED_SAMPLES = 5
Groups = Mapping[Hashable, list[int]]


def unreadable_images(
    split: Split, split_name: str, settings: DataSettings, cache_dir: str | None = None
) -> dict[int, str]:
    """Rows whose image cannot be read, each with the reason; the result is cached until an image changes.

    The header of every image is read. `verify_samples` images are decoded, drawn at random if there are more.

    Raises:
        UserError: with `on_bad_sample="error"` for any such row, with `"skip"` above 1 % of the rows.
    """
    bad = _unreadable(split, settings, cache_dir)
    if bad:
        _refuse(bad, split, split_name, settings, "images that can be read", "that cannot be read")
    return bad


def unreadable_texts(split: Split, split_name: str, settings: DataSettings) -> dict[int, str]:
    """Rows without a text, each with the reason.

    Raises:
        UserError: with `on_bad_sample="error"` for any such row, with `"skip"` above 1 % of the rows.
    """
    bad = {}
    for row, texts in zip(split.rows.tolist(), texts_of(split), strict=True):
        if any(text is None for text in texts):
            bad[row] = "missing"
        elif any(not text for text in texts):
            bad[row] = "empty"
        elif any(not str(text).strip() for text in texts):
            bad[row] = "white space only"
    if bad:
        _refuse(bad, split, split_name, settings, "a text in every row", "without one")
    return bad


def unreadable_pairs(
    split: Split, split_name: str, settings: DataSettings, cache_dir: str | None = None
) -> dict[int, str]:
    """Rows with neither an image nor a text, or with an image that cannot be read, each with the reason.

    Raises:
        UserError: with `on_bad_sample="error"` for any such row, with `"skip"` above 1 % of the rows.
    """
    with_image, with_text = is_given(split, "image"), is_given(split, "text")
    bad = dict.fromkeys(split.rows[~(with_image | with_text)].tolist(), "neither an image nor a text")
    bad |= _unreadable(part_of(split, np.flatnonzero(with_image)), settings, cache_dir)
    if bad:
        _refuse(bad, split, split_name, settings, "rows with an image that can be read, a text, or both", "others")
    return bad


def refuse_bad_share(bad: Mapping[int, str], split: Split, split_name: str) -> None:
    """Refuse to mask more than 1 % of a split: so many are hardly an accident."""
    if len(bad) > MAX_BAD_SHARE * len(split):
        raise user_error(
            expected=f"at most {MAX_BAD_SHARE:.0%} bad samples in split '{split_name}' with --on_bad_sample skip",
            found=f"{len(bad)} of {len(split)}: {_list(bad, split)}",
            do="fix or remove these samples",
        )


def copies_of_texts(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have an exact copy among the training texts."""

    def readable(split: Split) -> list[tuple[str | None, ...]]:
        return [
            texts
            for row, texts in zip(split.rows.tolist(), texts_of(split), strict=True)
            if row not in split.unreadable
        ]

    known = set(readable(splits["train"]))
    return {name: sum(texts in known for texts in readable(splits[name])) for name in ("validation", "test")}


def copies_of_images(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have an exact copy among the training images.

    Only images that agree in size are read and hashed.
    """
    return _count_copies(splits, {name: _by_size(split) for name, split in splits.items()})


def copies_of_pairs(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have a copy in training with the same image and text."""
    groups: dict[str, dict[Hashable, list[int]]] = {}
    for name, split in splits.items():
        texts = dict(zip(split.rows.tolist(), texts_of(split), strict=True))
        groups[name] = defaultdict(list)
        for size, rows in _by_size(split).items():
            for row in rows:
                groups[name][size, texts[row]].append(row)
    return _count_copies(splits, groups)


def _count_copies(splits: Mapping[str, Split], groups: Mapping[str, Groups]) -> dict[str, int]:
    """How many rows have a copy in training: a row of the same group whose image has the same content."""
    counts = {}
    for name in ("validation", "test"):
        shared = sorted(groups["train"].keys() & groups[name].keys(), key=repr)
        known = set(_digests(splits["train"], groups["train"], shared))
        counts[name] = sum(digest in known for digest in _digests(splits[name], groups[name], shared))
    return counts


def _unreadable(split: Split, settings: DataSettings, cache_dir: str | None) -> dict[int, str]:
    """See `unreadable_images`."""
    generator = np.random.default_rng(settings.split_seed)
    decoded = set(generator.permutation(split.rows)[: settings.verify_samples].tolist())
    cached = _cache_file(split, decoded, cache_dir)
    if cached.is_file():
        bad = {int(row): reason for row, reason in json.loads(cached.read_text(encoding="utf-8")).items()}
    else:
        bad = _check_rows(split, decoded)
        _write_cache(cached, bad)
    return bad


def _check_rows(split: Split, decoded: set[int]) -> dict[int, str]:
    def problem(row: int) -> str | None:
        raw = encoded_image(split, row)
        check: Callable[[dict[str, Any]], object] = decode if row in decoded else check_header
        try:
            check(raw)
        except BadImageError as error:
            return str(error)
        return None

    rows = split.rows.tolist()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        problems = pool.map(problem, rows, chunksize=64)
        return {row: reason for row, reason in zip(rows, problems, strict=True) if reason is not None}


def _refuse(
    bad: dict[int, str], split: Split, split_name: str, settings: DataSettings, expected: str, lacking: str
) -> None:
    if settings.on_bad_sample == "skip":
        refuse_bad_share(bad, split, split_name)
        return
    raise user_error(
        expected=f"{expected} in split '{split_name}'",
        found=f"{len(bad)} {lacking}: {_list(bad, split)}",
        do="fix or remove them, or mask them with --on_bad_sample skip",
    )


def _list(bad: Mapping[int, str], split: Split) -> str:
    listed = [f"{describe_row(split, row)} ({bad[row]})" for row in sorted(bad)[:LISTED_SAMPLES]]
    more = len(bad) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


def _cache_file(split: Split, decoded: set[int], cache_dir: str | None) -> Path:
    """The file that the result of a check is cached in."""
    key = hashlib.sha256(image_fingerprint(split).encode())
    key.update(np.asarray(sorted(decoded), dtype=np.int64).tobytes())
    return cache_folder(cache_dir) / "verified" / f"{key.hexdigest()}.json"


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


def _write_cache(cached: Path, bad: dict[int, str]) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Renamed once it is complete: another process must not read half of it.
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(bad), encoding="utf-8")
    partial.replace(cached)


def _by_size(split: Split) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row in split.rows.tolist():
        if row not in split.unreadable:
            rows[content_size(encoded_image(split, row))].append(row)
    return rows


def _digests(split: Split, groups: Groups, shared: Sequence[Hashable]) -> list[tuple[Hashable, bytes]]:
    """Group and hash of the image for all rows of the shared groups."""

    def digest(row: int) -> bytes:
        raw = encoded_image(split, row)
        # A pair may have no image.
        encoded = b"" if raw["bytes"] is raw["path"] is None else content(raw)
        return hashlib.blake2b(encoded, digest_size=16).digest()

    members = [(group, row) for group in shared for row in groups[group]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = pool.map(digest, [row for _, row in members], chunksize=64)
        return [(group, value) for (group, _), value in zip(members, digests, strict=True)]
