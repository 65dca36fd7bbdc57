"""Which split a file belongs to, by its name and the names of its folders."""

import re
from collections.abc import Sequence
from pathlib import Path

from hf_transfer.errors import user_error

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
# Beside these, in names of files only.
SHORT_NAMES = {"trn": "train", "tst": "test", "evaluation": "test"}
# As in TestSet, test2 or traindata.
WORD = re.compile(r"([a-z]+?)(?:data|set|dataset|split|file|files)?[0-9]*")


def split_of(file: Path) -> str | None:
    """The split that a file's name says (my_train.csv, TEST.CSV, train-00000-of-00002.parquet), or else its folder's.

    Args:
        file: its path below the folder of the data set.

    Returns:
        train, validation or test; None: neither says any.

    Raises:
        UserError: a name says two splits.
    """
    for part in (file.stem, *reversed(file.parent.parts)):
        splits = _named_in(part)
        if len(splits) > 1:
            raise user_error(
                expected="files and folders named for one split each",
                found=f"{file}, whose name says {' and '.join(splits)}",
                do="rename it, or name the file itself in --dataset_name",
            )
        if splits:
            return splits[0]
    return None


def only_split_in(name: str) -> str | None:
    """The split that a name says; None: it says none, or several."""
    splits = _named_in(name)
    return splits[0] if len(splits) == 1 else None


def _named_in(name: str) -> list[str]:
    known = SPLIT_OF | SHORT_NAMES
    # Capitals inside a name begin a word: myTrain, TestSet.
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    matches = [match for word in words if (match := WORD.fullmatch(word))]
    return list(dict.fromkeys(known[match[1]] for match in matches if match[1] in known))


def files_by_split(folder: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of each split, and those that are in none; where no name says a split, all files are for training."""
    splits: dict[str, list[Path]] = {}
    unknown = []
    for file in files:
        if split := split_of(file.relative_to(folder)):
            splits.setdefault(split, []).append(file)
        else:
            unknown.append(file)
    if not splits:
        return {"train": unknown}, []
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}, unknown


def notes_on_unused(unused: Sequence[Path]) -> list[str]:
    """A sentence on tables that are in no split, if there are some."""
    return [f"Not used, since they are in no split: {len(unused)} tables, such as {unused[0]}."] if unused else []
