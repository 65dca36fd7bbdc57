"""Splits that a data set lacks, cut off training by unit: nothing is on both sides, and rows stay when data grow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_transfer.data.cached_folders import NewFolder, ensure_written
from hf_transfer.data.fates import Source
from hf_transfer.data.groups import Keys, Units, units_of
from hf_transfer.data.samples import is_sample
from hf_transfer.data.split_names import SPLIT_NAMES
from hf_transfer.data.splits import Split, cut_stratified, part_of
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.target import Target
from hf_transfer.versions import versions

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FILES_SHOWN = 3
# Fewer rows are cut in a second.
FEWEST_REMEMBERED = 100_000
SPLIT_OF_EACH_ROW = "split_of_each_row"
# Bytes that all remembered cuts may take on the disk.
LARGEST_FOLDER = 1 << 30


def cut_missing(
    train: Split, missing: Sequence[str], keys: Sequence[Keys], settings: DataSettings, target: Target
) -> dict[str, Split]:
    """Cut the splits that are missing off the training split, one after the other.

    Args:
        train: the training split as it was read.
        missing: the names of the splits to cut.
        keys: by column; rows that share one stay together, see `units_of` [rows].
        settings: the fractions, and the seed.
        target: what is predicted.

    Returns:
        The training split with the rest of its rows, and the splits that were cut.

    Raises:
        UserError: there are too few units.
    """
    splits, units = {"train": train}, units_of(keys)
    for name in missing:
        fraction = fractions(settings)[name]
        split_off = cut_by_unit(splits["train"], units, units.places(settings.split_seed, name), fraction, target)
        _refuse_empty(split_off, name, units, len(missing), settings, target)
        units, whole = units.part(np.flatnonzero(~split_off)), splits["train"]
        splits |= {name: part_of(whole, np.flatnonzero(split_off)), "train": part_of(whole, np.flatnonzero(~split_off))}
    return splits


def cut_once(
    cache: Path, train: Split, missing: Sequence[str], keys: Sequence[Keys], settings: DataSettings, target: Target
) -> dict[str, Split]:
    """The same; which rows are cut is remembered for later runs, by all that it depends on.

    Args:
        cache: the folder of caches.
        train: see `cut_missing`, as for the others.
        missing: see there.
        keys: see there.
        settings: see there.
        target: see there.
    """
    if len(train) < FEWEST_REMEMBERED:
        return cut_missing(train, missing, keys, settings, target)
    names = ["train", *missing]
    material = (versions(), names, settings.split_seed, fractions(settings), target)
    digest = hashlib.sha256(repr(material).encode(errors="replace"))
    for column in (train.rows, train.targets, *keys):
        digest.update(f"{column.dtype}{column.shape}".encode() + np.ascontiguousarray(column).tobytes())
    folder = cache / "cuts" / digest.hexdigest()
    splits: dict[str, Split] = {}

    def write(new: NewFolder) -> None:
        splits.update(cut_missing(train, missing, keys, settings, target))
        numbers = np.zeros(len(train), dtype=np.int8)
        for number, name in enumerate(missing, start=1):
            numbers[np.searchsorted(train.rows, splits[name].rows)] = number
        new.file(SPLIT_OF_EACH_ROW).write(numbers.data)

    try:
        ensure_written(folder, LARGEST_FOLDER, write)
        numbers = np.fromfile(folder / SPLIT_OF_EACH_ROW, np.int8)
    except OSError:
        # A cache that cannot be written to costs time, and nothing else.
        return splits or cut_missing(train, missing, keys, settings, target)
    return {name: part_of(train, np.flatnonzero(numbers == number)) for number, name in enumerate(names)}


def cut_by_unit(
    split: Split, units: Units, places: npt.NDArray[np.float64], fraction: float, target: Target
) -> npt.NDArray[np.bool_]:
    """Which rows of a split are split off: whole units, with every kind of sample in proportion [rows]."""
    from hf_transfer.targets.stratification import cut_units

    chosen = cut_units(kinds_of_units(split, units, target), places, fraction)
    rows: npt.NDArray[np.bool_] = chosen[units.of_rows]
    return rows


def kinds_of_units(split: Split, units: Units, target: Target) -> csr_array:
    """How many samples of each kind a unit has [units, kinds]."""
    from scipy.sparse import csr_array

    of_rows = csr_array(
        (np.ones(len(split), dtype=np.int64), (units.of_rows, np.arange(len(split)))),
        shape=(len(units.keys), len(split)),
    )
    return csr_array(of_rows @ target.kinds(split.targets))


def cut_sample(train: Split, missing: Sequence[str], settings: DataSettings, target: Target) -> dict[str, Split]:
    """The same for an embedded sample, by rows: it never grows, no row is a copy, and its splits stay as they were."""
    splits = {"train": train}
    for name in missing:
        splits["train"], splits[name] = cut_stratified(
            splits["train"], fractions(settings)[name], settings.split_seed, target
        )
    return splits


def fractions(settings: DataSettings) -> dict[str, float]:
    """The share of training that is split off for each split that may be missing."""
    return {"validation": settings.validation_fraction, "test": settings.test_fraction}


def where_from(sources: Sequence[Source], missing: Sequence[str], settings: DataSettings, target: Target) -> str:
    """A sentence that says where each split comes from.

    Args:
        sources: the splits as they were read.
        missing: the names of the splits that were cut off training.
        settings: of the data.
        target: what is predicted.
    """
    folder = Path(settings.dataset_name).expanduser().absolute()
    parts = {source.splits[0]: _files(source, folder) for source in sources if source.splits}
    group = f"group ({settings.group_column_name}), " if settings.group_column_name else ""
    how = f"by {group}content and {target.divided_by.removeprefix('by ')}"
    if is_sample(settings.dataset_name):
        how = target.divided_by
    parts |= {name: f"{100 * fractions(settings)[name]:.3g} % of train, split off {how}" for name in missing}
    return f"Splits: {'; '.join(f'{name} from {parts[name]}' for name in SPLIT_NAMES if name in parts)}."


def _files(source: Source, folder: Path) -> str:
    """The files of a split, or the folder that they are in, or else the name of the split."""
    if source.origins is None or not source.origins.files:
        return f"split '{source.name}'"
    paths = [Path(file).absolute() for file in source.origins.files]
    names = [str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path in paths]
    if len(names) <= FILES_SHOWN:
        return ", ".join(path.name if name == "." else name for name, path in zip(names, paths, strict=True))
    common = Path(os.path.commonpath(paths))
    inside = common.relative_to(folder) if common.is_relative_to(folder) and common != folder else common
    return f"{len(names):,} files in {inside}"


def _refuse_empty(
    split_off: npt.NDArray[np.bool_], name: str, units: Units, splits: int, settings: DataSettings, target: Target
) -> None:
    if split_off.any() and not split_off.all():
        return
    group = settings.group_column_name
    what = f"groups of column '{group}'" if group else "different samples"
    together = "copies of a sample" + (", and samples of a group," if group else "")
    raise user_error(
        expected=f"at least {1 + splits} {what} with the same {target.divided_by.removeprefix('by ')}, to split a "
        f"{name} split off training",
        found=f"{len(units.keys)} {what} in all, too few of each kind; {together} stay on one side",
        do=f"add samples, or a {name} split of your own" + (", or leave --group_column_name out" if group else ""),
    )
