"""Looking at samples before anything slow begins: can they be read, and do splits share some?"""

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

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.images import BadImageError, check_header, content, content_size, decode
from hf_transfer.data.splits import Split

MAX_BAD_SHARE = 0.01
LISTED_SAMPLES = 5
Groups = Mapping[Hashable, list[int]]


def find_bad_images(split: Split, split_name: str, config: RunConfig) -> dict[int, str]:
    """Rows whose image cannot be read, each with the reason; remembered for unchanged images.

    The header of every image is read; up to `verify_samples` are decoded, beyond that a drawn part.

    Raises:
        UserError: with `on_bad_sample="error"` for the first bad image, with `"skip"` above 1 % of the rows.
    """
    bad = _unreadable(split, config)
    if bad:
        _judge(bad, split, split_name, config, "images that can be read", "that cannot")
    return bad


def find_bad_texts(split: Split, split_name: str, config: RunConfig) -> dict[int, str]:
    """Rows without a text, each with the reason.

    Raises:
        UserError: with `on_bad_sample="error"` for the first such row, with `"skip"` above 1 % of the rows.
    """
    bad = {}
    for row, texts in zip(split.rows.tolist(), split.texts(), strict=True):
        if any(text is None for text in texts):
            bad[row] = "missing"
        elif any(not text for text in texts):
            bad[row] = "empty"
        elif any(not str(text).strip() for text in texts):
            bad[row] = "white space only"
    if bad:
        _judge(bad, split, split_name, config, "a text in every row", "without one")
    return bad


def find_bad_pairs(split: Split, split_name: str, config: RunConfig) -> dict[int, str]:
    """Rows with neither an image nor a text, or with an image that cannot be read, each with the reason.

    Raises:
        UserError: with `on_bad_sample="error"` for the first such row, with `"skip"` above 1 % of the rows.
    """
    with_image, with_text = split.given("image"), split.given("text")
    bad = dict.fromkeys(split.rows[~(with_image | with_text)].tolist(), "neither an image nor a text")
    bad |= _unreadable(Split(split.dataset, split.rows[with_image], split.labels[with_image]), config)
    if bad:
        _judge(bad, split, split_name, config, "rows with an image that can be read, a text, or both", "others")
    return bad


def refuse_bad_share(bad: Mapping[int, str], split: Split, split_name: str) -> None:
    """Stop when more than 1 % of a split would be masked: that is no accident any more."""
    if len(bad) > MAX_BAD_SHARE * len(split):
        raise mistake(
            expected=f"at most {MAX_BAD_SHARE:.0%} bad samples in split '{split_name}' with --on_bad_sample skip",
            found=f"{len(bad)} of {len(split)}: {_list(bad, split)}",
            do="mend or remove these samples",
        )


def count_duplicate_texts(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have an exact copy among the training texts."""

    def readable(split: Split) -> list[tuple[str | None, ...]]:
        return [texts for row, texts in zip(split.rows.tolist(), split.texts(), strict=True) if row not in split.bad]

    known = set(readable(splits["train"]))
    return {name: sum(texts in known for texts in readable(splits[name])) for name in ("validation", "test")}


def count_duplicate_images(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have an exact copy among the training images.

    Only images that agree in size are read and hashed.
    """
    return _count_copies(splits, {name: _by_size(split) for name, split in splits.items()})


def count_duplicate_pairs(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test: how many of their rows have a copy in training that agrees in image and in text."""
    groups: dict[str, dict[Hashable, list[int]]] = {}
    for name, split in splits.items():
        texts = dict(zip(split.rows.tolist(), split.texts(), strict=True))
        groups[name] = defaultdict(list)
        for size, rows in _by_size(split).items():
            for row in rows:
                groups[name][size, texts[row]].append(row)
    return _count_copies(splits, groups)


def _count_copies(splits: Mapping[str, Split], groups: Mapping[str, Groups]) -> dict[str, int]:
    """How many rows have a training row of the same group whose image has the same content."""
    counts = {}
    for name in ("validation", "test"):
        shared = sorted(groups["train"].keys() & groups[name].keys(), key=repr)
        known = set(_digests(splits["train"], groups["train"], shared))
        counts[name] = sum(digest in known for digest in _digests(splits[name], groups[name], shared))
    return counts


def _unreadable(split: Split, config: RunConfig) -> dict[int, str]:
    """See `find_bad_images`."""
    generator = np.random.default_rng(config.split_seed)
    decoded = set(generator.permutation(split.rows)[: config.verify_samples].tolist())
    memory = _memory_file(split, decoded, config)
    if memory.is_file():
        bad = {int(row): reason for row, reason in json.loads(memory.read_text(encoding="utf-8")).items()}
    else:
        bad = _check_rows(split, decoded)
        _remember(memory, bad)
    return bad


def _check_rows(split: Split, decoded: set[int]) -> dict[int, str]:
    def problem(row: int) -> str | None:
        raw = split.raw(row)
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


def _judge(bad: dict[int, str], split: Split, split_name: str, config: RunConfig, expected: str, lacking: str) -> None:
    if config.on_bad_sample == "skip":
        refuse_bad_share(bad, split, split_name)
        return
    raise mistake(
        expected=f"{expected} in split '{split_name}'",
        found=f"{len(bad)} {lacking}: {_list(bad, split)}",
        do="mend or remove them, or mask them with --on_bad_sample skip",
    )


def _list(bad: Mapping[int, str], split: Split) -> str:
    listed = [f"{split.describe(row)} ({bad[row]})" for row in sorted(bad)[:LISTED_SAMPLES]]
    more = len(bad) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


def _memory_file(split: Split, decoded: set[int], config: RunConfig) -> Path:
    """Where the result is remembered."""
    key = hashlib.sha256(image_fingerprint(split).encode())
    key.update(np.asarray(sorted(decoded), dtype=np.int64).tobytes())
    return cache_folder(config.cache_dir) / "verified" / f"{key.hexdigest()}.json"


def image_fingerprint(split: Split) -> str:
    """A hash that changes with any image of a split, its size or its time of change."""
    key = hashlib.sha256(f"{split.dataset._fingerprint}{split.rows.tolist()}".encode())
    # As they lie in memory: a million rows, taken one by one, would be a matter of minutes.
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


def _remember(memory: Path, bad: dict[int, str]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = memory.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(bad), encoding="utf-8")
    partial.replace(memory)


def _by_size(split: Split) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row in split.rows.tolist():
        if row not in split.bad:
            rows[content_size(split.raw(row))].append(row)
    return rows


def _digests(split: Split, groups: Groups, shared: Sequence[Hashable]) -> list[tuple[Hashable, bytes]]:
    """Group and hash of the image, of all rows in the groups that are shared."""

    def digest(row: int) -> bytes:
        raw = split.raw(row)
        # Of a pair, the image may be missing.
        encoded = b"" if raw["bytes"] is raw["path"] is None else content(raw)
        return hashlib.blake2b(encoded, digest_size=16).digest()

    members = [(group, row) for group in shared for row in groups[group]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = pool.map(digest, [row for _, row in members], chunksize=64)
        return [(group, found) for (group, _), found in zip(members, digests, strict=True)]
