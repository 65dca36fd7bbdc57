"""Checks of samples before anything slow begins: whether they can be read, and whether splits share some."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute

from hf_transfer.data.groups import NO_KEY, Keys, key_of
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE, Levels, white_level
from hf_transfer.data.pictures import (
    DECODING,
    BadImageError,
    beyond_white,
    check_header,
    content,
    content_size,
    decoded_levels,
    readable_formats,
)
from hf_transfer.data.rows import (
    as_dict,
    describe_row,
    encoded_image,
    encoded_images,
    is_given,
    joined_bytes,
    texts_of,
)
from hf_transfer.data.splits import Rows, Split, part_of
from hf_transfer.data.text_checks import copies_of_texts, each_text
from hf_transfer.data.threads import in_threads
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.settings.run import RunConfig

MAX_BAD_SHARE = 0.01
# So many images of more than 8 bits are decoded at least, if there are so many.
MEASURED_IMAGES = 1_000
# Of a picture with many values hardly anything is seen in fewer shades.
MANY_VALUES, FEW_SHADES = 64, 32
LISTED_SAMPLES = 5
# As `content_size` has it; a pair may have no image.
NO_IMAGE = -1
# The size of an image, and the text or the texts beside it; None: there are none.
Group = tuple[int, tuple[str | None, ...] | None]
Groups = dict[Group, list[int]]


class Looked(NamedTuple):
    """What a look at the images of a split showed.

    Attributes:
        bad: rows whose image cannot be read, each with the reason.
        levels: the values of decoded images that have more than 8 bits for each channel, by row.
        keys: the rows whose image was read as a whole, each with the key of its content.
    """

    bad: dict[int, str]
    levels: dict[int, Levels]
    keys: dict[int, int]


def look_at_images(split: Split, config: RunConfig) -> Looked:
    """Read the images of a split; the result is cached until an image changes.

    The header of every image is read. `verify_samples` images are decoded, drawn at random if there are more. Of
    images of more than 8 bits, at least `MEASURED_IMAGES` are, since their largest value tells what is white.
    """
    order = np.random.default_rng(config.data.split_seed).permutation(split.rows)
    decoded = order[: config.data.verify_samples].tolist()
    key = hashlib.sha256(" ".join(("with contents", image_fingerprint(split), DECODING, *readable_formats())).encode())
    key.update(order[: config.data.verify_samples].tobytes())
    cached = cache_folder(config.store.cache_dir) / "verified" / f"{key.hexdigest()}.json"
    if cached.is_file():
        content = json.loads(cached.read_text(encoding="utf-8"))
        bad, levels, keys = ({int(row): value for row, value in content[name].items()} for name in Looked._fields)
        return Looked(bad, {row: Levels(*values) for row, values in levels.items()}, keys)
    looked = _check_rows(split, order, set(decoded))
    _remember(cached, json.dumps(looked._asdict()).encode())
    return looked


def _remember(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed once it is complete: another process must not read half of it.
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def bad_images(split: Split, config: Any) -> dict[int, str]:
    """The rows whose image cannot be used, each with the reason.

    Args:
        split: the images.
        config: of a run whose samples have images.
    """
    looked, white = look_at_images(split, config), config.image.largest_pixel_value
    reasons = {row: beyond_white(levels, white) for row, levels in looked.levels.items()}
    return looked.bad | {row: reason for row, reason in reasons.items() if reason is not None}


def measured_white(train: Split, config: Any) -> dict[str, Any]:
    """The setting `largest_pixel_value` as training images tell it; empty if none has more than 8 bits.

    Args:
        train: checked training images.
        config: of a run whose samples have images.
    """
    levels = [one for row, one in train.levels.items() if row not in train.unreadable]
    white = config.image.largest_pixel_value
    # A finished model keeps what it was trained with.
    if white is None and levels and config.trains():
        white = white_level(max(one.largest for one in levels), whole=any(one.whole for one in levels))
    return {} if white is None else {LARGEST_PIXEL_VALUE: white}


def notes_on_levels(splits: Mapping[str, Split], white: float | None) -> list[str]:
    """Sentences on images of more than 8 bits: what is white, and those of which hardly any shades are left."""
    deep = [(split, row, levels) for split in splits.values() for row, levels in split.levels.items()]
    if white is None or not deep:
        return []
    notes = [f"In pictures of more than 8 bits for each channel 0 is black and {white:,g} is white."]
    # Shades from 0 to 255 between the smallest and the largest value.
    few = [one for one in deep if one[2].distinct >= MANY_VALUES and one[2].range * 255 / white < FEW_SHADES]
    if few:
        split, row, levels = few[0]
        notes.append(
            f"Warning: of {len(few):,} such pictures fewer than {FEW_SHADES} shades are left, as of "
            f"{describe_row(split, row)} with values from {levels.smallest:,g} to {levels.largest:,g}. Save "
            "all pictures with the same number of bits, or name the value that is white in --largest_pixel_value."
        )
    return notes


def bad_pairs(split: Split, config: Any) -> dict[int, str]:
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
            do="fix or remove them" + (", or mask them with --on_bad_sample skip" if _are_few(bad, split) else ""),
        )
    refuse_bad_share(bad, split, split_name)


def _are_few(bad: Mapping[int, str], split: Split) -> bool:
    return len(bad) <= MAX_BAD_SHARE * len(split)


def refuse_bad_share(bad: Mapping[int, str], split: Split, split_name: str) -> None:
    """Refuse to mask more than 1 % of a split: so many are hardly an accident."""
    if not _are_few(bad, split):
        raise user_error(
            expected=f"at most {MAX_BAD_SHARE:.0%} bad samples in split '{split_name}' with --on_bad_sample skip",
            found=f"{len(bad)} of {len(split)}: {_list(bad, split)}",
            do="fix or remove these samples",
        )


def copies(splits: Mapping[str, Split]) -> dict[str, int]:
    """For validation and test, if there is training: how many of their rows have an exact copy in it.

    A copy has the same image, the same text, or both, as far as samples have them. Only images of rows that agree in
    their text and in the size of their image are read and hashed.
    """
    if "train" not in splits or len(splits) == 1:
        return {}
    if not any("image" in split.dataset.column_names for split in splits.values()):
        return copies_of_texts(splits)
    groups = {name: _by_size_and_text(split) for name, split in splits.items()}
    counts = {}
    for name in (name for name in splits if name != "train"):
        shared = groups["train"].keys() & groups[name].keys()
        known = set(_digests(splits["train"], groups["train"], shared))
        counts[name] = sum(digest in known for digest in _digests(splits[name], groups[name], shared))
    return counts


def _check_rows(split: Split, order: Rows, decoded: set[int]) -> Looked:
    """Look at all images; `decoded`, and some of those of more than 8 bits in this order, are decoded."""
    looked = Looked({}, {}, {})

    def header(row: int, image: pyarrow.StructScalar) -> bool | None:
        return None if row in decoded else _or_bad(check_header, as_dict(image), row, looked.bad)

    def decode(row: int) -> None:
        raw = encoded_image(split, row)
        if content_size(raw) >= 0:
            # Read once, for both purposes.
            raw = raw | {"bytes": content(raw)}
            looked.keys[row] = key_of(raw["bytes"])
        levels = _or_bad(decoded_levels, raw, row, looked.bad)
        if levels is not None:
            looked.levels[row] = levels

    rows = split.rows.tolist()
    images = zip(rows, encoded_images(split), strict=True)
    are_deep = {row for row, is_deep in zip(rows, in_threads(lambda one: header(*one), images), strict=True) if is_deep}
    deep = [row for row in order.tolist() if row in are_deep]
    list(in_threads(decode, list(decoded)))
    list(in_threads(decode, deep[: max(0, MEASURED_IMAGES - len(looked.levels))]))
    bad, levels, keys = looked
    return Looked(dict(sorted(bad.items())), dict(sorted(levels.items())), dict(sorted(keys.items())))


def _or_bad(look: Callable[[dict[str, Any]], Any], raw: dict[str, Any], row: int, bad: dict[int, str]) -> Any:
    """What is seen of the image of a row; None if it cannot be read, with the reason in `bad`."""
    try:
        return look(raw)
    except BadImageError as error:
        bad[row] = str(error)
        return None


def content_keys(split: Split, config: RunConfig) -> Keys:
    """The key of each row's content: of its image, its texts, or both; of its columns, if it has neither [rows].

    A row without content has a key of its own. Images that were not read as a whole when they were checked are read
    once, and their keys are cached until an image changes.
    """
    names = split.dataset.column_names
    if names == ["image"] and len(split) > config.data.verify_samples:
        return _remembered_keys(split, config)
    return _content_keys(split, config)


def _remembered_keys(split: Split, config: RunConfig) -> Keys:
    """The same for many images, whose keys are cached until one changes."""
    cached = cache_folder(config.store.cache_dir) / "verified" / f"{image_fingerprint(split)}.contents"
    if not cached.is_file():
        _remember(cached, _content_keys(split, config).tobytes())
    return np.fromfile(cached, np.uint64)


def _content_keys(split: Split, config: RunConfig) -> Keys:
    names = split.dataset.column_names
    parts: list[Iterable[object]] = []
    if "image" in names:
        parts.append(_image_keys(split, config))
    if "text" in names:
        parts.append(each_text(split))
    if not parts:
        chosen = split.dataset.select(split.rows)
        parts = [chosen[name][:] for name in names]
    contents = zip(split.rows.tolist(), zip(*parts, strict=True), strict=True)
    # Invalid surrogates are in texts that were written in another encoding.
    keys = (
        key_of((repr(values) if any(value is not None for value in values) else f"row {row}").encode(errors="replace"))
        for row, values in contents
    )
    return np.fromiter(keys, np.uint64, len(split))


def _image_keys(split: Split, config: RunConfig) -> list[int | None]:
    """The key of each row's image; None: it has none, or its file is missing."""
    images = part_of(split, np.flatnonzero(is_given(split, "image")))
    keys = look_at_images(images, config).keys
    rest = [row for row in images.rows.tolist() if row not in keys]
    cached = cache_folder(config.store.cache_dir) / "verified" / f"{image_fingerprint(images)}.keys"
    if rest and cached.is_file():
        read = np.frombuffer(cached.read_bytes(), dtype=np.uint64).tolist()
        keys = dict(zip(images.rows.tolist(), read, strict=True))
    elif rest:
        left_out = part_of(images, np.flatnonzero(~np.isin(images.rows, list(keys))))
        keys = keys | dict(zip(rest, in_threads(_image_key, encoded_images(left_out)), strict=True))
        # `NO_KEY` for missing files.
        _remember(cached, np.asarray([keys[row] for row in images.rows.tolist()], dtype=np.uint64).tobytes())
    return [keys.get(row) or None for row in split.rows.tolist()]


def _image_key(image: pyarrow.StructScalar) -> int:
    raw = as_dict(image)
    return key_of(content(raw)) if content_size(raw) >= 0 else int(NO_KEY)


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
    if sizes.null_count == 0:
        for chunk in sizes.cast(pyarrow.large_string()).chunks:
            key.update(joined_bytes(chunk))
        return key.hexdigest()
    paths = pyarrow.compute.struct_field(images, "path").take(split.rows)
    key.update("".join(map(_state_of_image, paths.to_pylist(), sizes.to_pylist())).encode())
    return key.hexdigest()


def _state_of_image(path: str | None, size: int | None) -> str:
    if size is None and path and Path(path).is_file():
        status = Path(path).stat()
        return f"{path}|{status.st_size}|{status.st_mtime_ns}"
    return str(size)


def _by_size_and_text(split: Split) -> Groups:
    """The rows that can be read, by what is known before an image is: its size, and the text of the row."""
    # Not each modality has texts.
    texts = dict(zip(split.rows.tolist(), texts_of(split), strict=False))
    groups: Groups = defaultdict(list)
    counting = part_of(split, np.flatnonzero(split.counted))
    sizes: Iterable[int] = repeat(NO_IMAGE, len(counting))
    if "image" in split.dataset.column_names:
        sizes = (content_size(as_dict(image)) for image in encoded_images(counting))
    for row, size in zip(counting.rows.tolist(), sizes, strict=True):
        groups[size, texts.get(row)].append(row)
    return groups


def _digests(split: Split, groups: Groups, shared: Iterable[Group]) -> list[tuple[Group, bytes]]:
    """Group and hash of the image for all rows of the shared groups."""

    def digest(member: tuple[Group, int]) -> tuple[Group, bytes]:
        group, row = member
        encoded = b"" if group[0] == NO_IMAGE else content(encoded_image(split, row))
        return group, hashlib.blake2b(encoded, digest_size=16).digest()

    return list(in_threads(digest, [(group, row) for group in shared for row in groups[group]]))
