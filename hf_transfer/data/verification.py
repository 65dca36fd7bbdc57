"""Checks of samples before anything slow begins: whether they can be read, and whether splits share some."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow

from hf_transfer.data.groups import NO_KEY, Keys, key_of
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.identities import image_fingerprint
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE, Levels, white_level
from hf_transfer.data.pictures import (
    DECODING,
    BadImageError,
    NotReadError,
    beyond_white,
    check_header,
    content,
    content_size,
    decoded_levels,
    decoders,
)
from hf_transfer.data.remembered import recall, remember
from hf_transfer.data.rows import as_dict, describe_row, encoded_image, encoded_images, is_given, texts_of
from hf_transfer.data.splits import Rows, Split, part_of
from hf_transfer.data.text_checks import copies_of_texts, each_text
from hf_transfer.data.threads import in_threads
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.settings.run import RunConfig

MAX_BAD_SHARE = 0.01
# So many images of more than 8 bits are decoded at least, if there are so many.
MEASURED_IMAGES = 1_000
# The folder of what is remembered, below that of `--cache_dir`.
VERIFIED = "verified"
# Of a picture with many values hardly anything is seen in fewer shades.
MANY_VALUES, FEW_SHADES = 64, 32
LISTED_SAMPLES = 5
# As `content_size` has it; a pair may have no image.
NO_IMAGE = -1
# The size of an image, and the text or the texts beside it; None: there are none.
Group = tuple[int, tuple[str | None, ...] | None]
Groups = dict[Group, list[int]]
# A row and its image, which is not read yet.
Numbered = tuple[int, pyarrow.StructScalar]


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


class KeptPictures(Protocol):
    """Decodes pictures and keeps what comes out for those who train on them; see `modalities.kept_pixels`.

    Attributes:
        cache: the folder of all that is kept.
    """

    cache: Path

    def places(self, split: Split, white: float | None) -> npt.NDArray[np.int64]:
        """Where the picture of each row is kept [rows]."""

    def known(self, split: Split, places: npt.NDArray[np.int64]) -> dict[int, int]:
        """The rows whose pictures are kept and have 8 bits, each with the key of its content."""

    def look(self, raw: dict[str, Any], key: int, place: int, white: float | None) -> Levels | None:
        """Decode a picture with this key and keep it; see `pictures.decoded_levels`."""


def look_at_images(split: Split, config: Any, kept: KeptPictures | None = None) -> Looked:
    """Read the images of a split; the result is cached until an image changes.

    The header of every image is read. `verify_samples` images are decoded, drawn at random if there are more. Of
    images of more than 8 bits, at least `MEASURED_IMAGES` are, since their largest value tells what is white. An image
    that is kept can be decoded, and is not looked at again.

    Args:
        split: the images.
        config: of a run whose samples have images.
        kept: keeps what is decoded; None: it is thrown away.
    """
    order = np.random.default_rng(config.data.split_seed).permutation(split.rows)
    decoded = order[: config.data.verify_samples].tolist()
    key = hashlib.sha256(" ".join(("with contents", image_fingerprint(split), DECODING, decoders())).encode())
    key.update(order[: config.data.verify_samples].tobytes())
    cached = cache_folder(config.store.cache_dir) / VERIFIED / f"{key.hexdigest()}.json"
    if (written := recall(cached)) is not None:
        fields = json.loads(written)
        bad, levels, keys = ({int(row): value for row, value in fields[name].items()} for name in Looked._fields)
        return Looked(bad, {row: Levels(*values) for row, values in levels.items()}, keys)
    looked, all_read = _check_rows(split, order, set(decoded), config.image.largest_pixel_value, kept)
    if all_read:
        remember(cached, json.dumps(looked._asdict()).encode())
    return looked


def bad_images(split: Split, config: Any, kept: KeptPictures | None = None) -> dict[int, str]:
    """The rows whose image cannot be used, each with the reason; see `look_at_images`."""
    looked, white = look_at_images(split, config, kept), config.image.largest_pixel_value
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


def bad_pairs(split: Split, config: Any, kept: KeptPictures | None = None) -> dict[int, str]:
    """The rows with neither an image nor a text, or with an image that cannot be read, each with the reason."""
    with_image, with_text = is_given(split, "image"), is_given(split, "text")
    bad = dict.fromkeys(split.rows[~(with_image | with_text)].tolist(), "neither an image nor a text")
    return bad | bad_images(part_of(split, np.flatnonzero(with_image)), config, kept)


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


def copies(splits: Mapping[str, Split], kept: KeptPictures | None = None) -> dict[str, int]:
    """For validation and test, if there is training: how many of their rows have an exact copy in it.

    A copy has the same image, the same text, or both, as far as samples have them. Only images of rows that agree in
    their text and in the size of their image are compared, by the keys of their contents.

    Args:
        splits: to compare.
        kept: knows the keys of images that have been decoded; the counts are cached beside it until an image changes.
            None: all are read.
    """
    if "train" not in splits or len(splits) == 1:
        return {}
    if not any("image" in split.dataset.column_names for split in splits.values()):
        return copies_of_texts(splits)
    if kept is None:
        return _count_copies(splits, None)
    digest = hashlib.sha256(b"copies")
    for name, split in sorted(splits.items()):
        digest.update(f"{name} {split.fingerprint()} {image_fingerprint(split)}".encode())
    cached = kept.cache / VERIFIED / f"{digest.hexdigest()}.copies"
    if (written := recall(cached)) is not None:
        return {str(name): int(count) for name, count in json.loads(written).items()}
    counts = _count_copies(splits, kept)
    remember(cached, json.dumps(counts).encode())
    return counts


def _count_copies(splits: Mapping[str, Split], kept: KeptPictures | None) -> dict[str, int]:
    groups = {name: _by_size_and_text(split) for name, split in splits.items()}
    shared = {name: groups["train"].keys() & groups[name].keys() for name in splits if name != "train"}
    in_training = set(_keys_of(splits["train"], groups["train"], set().union(*shared.values()), kept))
    return {
        name: sum(key in in_training for key in _keys_of(splits[name], groups[name], groups_of_both, kept))
        for name, groups_of_both in shared.items()
    }


def _check_rows(
    split: Split, order: Rows, decoded: set[int], white: float | None, kept: KeptPictures | None
) -> tuple[Looked, bool]:
    """Look at all images; `decoded`, and some of those of more than 8 bits in this order, are decoded.

    Returns:
        What was seen, and whether the files of all images could be read: of others more may be seen the next time.
    """
    looked = Looked({}, {}, {})
    errors: dict[int, BadImageError] = {}
    places: dict[int, int] = {}
    if kept is not None:
        in_store = kept.places(split, white)
        places = dict(zip(split.rows.tolist(), in_store.tolist(), strict=True))
        looked.keys.update(kept.known(split, in_store))

    def numbered(rows: Collection[int]) -> Iterator[Numbered]:
        part = part_of(split, np.flatnonzero(np.isin(split.rows, list(rows))))
        return zip(part.rows.tolist(), encoded_images(part), strict=True)

    def header(one: Numbered) -> tuple[int, bool | None]:
        row, image = one
        return row, _or_bad(check_header, as_dict(image), row, errors)

    def look(raw: dict[str, Any], row: int) -> Levels | None:
        if content_size(raw) < 0:
            return decoded_levels(raw)
        # Read once, for all purposes.
        raw = raw | {"bytes": content(raw)}
        looked.keys[row] = key_of(raw["bytes"])
        return decoded_levels(raw) if kept is None else kept.look(raw, looked.keys[row], places[row], white)

    def decode(one: Numbered) -> None:
        row, image = one
        if (levels := _or_bad(partial(look, row=row), as_dict(image), row, errors)) is not None:
            looked.levels[row] = levels

    decoded = decoded - looked.keys.keys()
    unread = set(split.rows.tolist()) - looked.keys.keys() - decoded
    are_deep = {row for row, is_deep in in_threads(header, numbered(unread)) if is_deep}
    deep = [row for row in order.tolist() if row in are_deep]
    list(in_threads(decode, numbered(decoded)))
    list(in_threads(decode, numbered(deep[: max(0, MEASURED_IMAGES - len(looked.levels))])))
    bad = {row: str(error) for row, error in sorted(errors.items())}
    all_read = not any(isinstance(error, NotReadError) for error in errors.values())
    return Looked(bad, dict(sorted(looked.levels.items())), dict(sorted(looked.keys.items()))), all_read


def _or_bad(
    look: Callable[[dict[str, Any]], Any], raw: dict[str, Any], row: int, errors: dict[int, BadImageError]
) -> Any:
    """What is seen of the image of a row; None if it cannot be used, with the reason in `errors`."""
    try:
        return look(raw)
    except BadImageError as error:
        errors[row] = error
        return None


def content_keys(split: Split, config: RunConfig, kept: KeptPictures | None = None) -> Keys:
    """The key of each row's content: of its image, its texts, or both; of its columns, if it has neither [rows].

    A row without content has a key of its own. Images that were not read as a whole when they were checked are read
    once, and their keys are cached until an image changes.
    """
    names = split.dataset.column_names
    if names == ["image"] and len(split) > config.data.verify_samples:
        return _remembered_keys(split, config, kept)
    return _content_keys(split, config, kept)


def _remembered_keys(split: Split, config: RunConfig, kept: KeptPictures | None) -> Keys:
    """The same for many images, whose keys are cached until one changes."""
    cached = cache_folder(config.store.cache_dir) / VERIFIED / f"{image_fingerprint(split)}.contents"
    if (written := recall(cached)) is not None:
        return np.frombuffer(written, np.uint64)
    keys = _content_keys(split, config, kept)
    remember(cached, keys.tobytes())
    return keys


def _content_keys(split: Split, config: RunConfig, kept: KeptPictures | None) -> Keys:
    names = split.dataset.column_names
    parts: list[Iterable[object]] = []
    if "image" in names:
        parts.append(_image_keys(split, config, kept))
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


def _image_keys(split: Split, config: RunConfig, kept: KeptPictures | None) -> list[int | None]:
    """The key of each row's image; None: it has none, or its file is missing."""
    images = part_of(split, np.flatnonzero(is_given(split, "image")))
    keys = look_at_images(images, config, kept).keys
    rest = [row for row in images.rows.tolist() if row not in keys]
    cached = cache_folder(config.store.cache_dir) / VERIFIED / f"{image_fingerprint(images)}.keys"
    if rest and (written := recall(cached)) is not None:
        keys = dict(zip(images.rows.tolist(), np.frombuffer(written, np.uint64).tolist(), strict=True))
    elif rest:
        left_out = part_of(images, np.flatnonzero(~np.isin(images.rows, list(keys))))
        read = in_threads(lambda image: _key_of_content(as_dict(image)), encoded_images(left_out))
        keys = keys | dict(zip(rest, read, strict=True))
        # `NO_KEY` for missing files.
        all_keys = np.asarray([keys[row] for row in images.rows.tolist()], dtype=np.uint64)
        remember(cached, all_keys.tobytes())
    return [keys.get(row) or None for row in split.rows.tolist()]


def _key_of_content(raw: dict[str, Any]) -> int:
    """`NO_KEY`, if its file is missing or cannot be read."""
    try:
        return key_of(content(raw)) if content_size(raw) >= 0 else int(NO_KEY)
    except NotReadError:
        return int(NO_KEY)


def _list(bad: Mapping[int, str], split: Split) -> str:
    listed = [f"{describe_row(split, row)} ({bad[row]})" for row in sorted(bad)[:LISTED_SAMPLES]]
    more = len(bad) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


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


def _keys_of(
    split: Split, groups: Groups, shared: Iterable[Group], kept: KeptPictures | None
) -> list[tuple[Group, int]]:
    """Group and key of the image for all rows of the shared groups."""
    members = [(group, row) for group in shared for row in groups[group]]
    known = {} if kept is None or not members else kept.known(split, kept.places(split, None))

    def key(member: tuple[Group, int]) -> tuple[Group, int]:
        group, row = member
        if group[0] == NO_IMAGE:
            return group, int(NO_KEY)
        return group, known.get(row) or _key_of_content(encoded_image(split, row))

    return list(in_threads(key, members))
