"""Folders of files, each of which is a sample, below a folder for each class: as torchvision and Keras read them."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hf_transfer.data.files import Tree
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.split_folders import folders_of_splits, is_container, is_split, split_words
from hf_transfer.errors import some, user_error

# Pictures that no version of this library reads, or only with a package that may be missing.
OTHER_PICTURES = frozenset({
    ".3fr", ".ai", ".arw", ".avif", ".cr2", ".cr3", ".cur", ".dcm", ".dng", ".eps", ".exr", ".fits", ".hdr", ".heic",
    ".heif", ".hif", ".icns", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".jxr", ".nef", ".nrw", ".orf", ".pcx", ".pef",
    ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".srw", ".svg", ".tga", ".xbm", ".xcf", ".xpm",
})  # fmt: skip

# Hidden folders that programs make beside data.
TOOL_FOLDERS = frozenset({
    ".cache", ".dvc", ".fseventsd", ".git", ".idea", ".ipynb_checkpoints", ".spotlight-v100", ".thumbnails", ".trash",
    ".trashes", ".venv", ".vscode",
})  # fmt: skip


class Kind(NamedTuple):
    """What the files of a folder are.

    Attributes:
        plural: what a file is called in messages.
        suffixes: of the files that are read.
        unread: suffixes of files that are of this kind, too, but are not read.
    """

    plural: str
    suffixes: Collection[str]
    unread: Collection[str] = ()


PICTURES = Kind("images", SUFFIXES, OTHER_PICTURES - SUFFIXES)
TEXTS = Kind("texts", frozenset({".txt"}))
Classes = dict[str, list[Path]]


@dataclass
class Part:
    """One split of a folder.

    Attributes:
        root: the folder that holds the folders of classes.
        classes: by the name of its folder, the files of each class.
        loose: files that lie beside the folders of classes, or in a split without any.
    """

    root: Path
    classes: Classes
    loose: list[Path]


@dataclass
class Arrangement:
    """The files of a folder by split and class.

    Attributes:
        parts: by split, as its folder is called in lower case.
        notes: sentences on how the folder was understood, and what in it is not used.
        inner_splits: whether the folders of splits are below those of the classes.
    """

    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    inner_splits: bool = False

    def names_classes(self) -> bool:
        """Whether there are several folders whose names can be those of classes."""
        names = {name for part in self.parts.values() for name in part.classes}
        return len(names) > 1 and not all(map(is_container, names))


def arrange(root: Path, tree: Tree, kind: Kind) -> Arrangement:
    """Find the splits and classes of a folder, without checking them.

    A class is the folder below that of the split, or below the top; folders below it do not count. The top folders are
    splits only if all of them are. A single folder that holds all others is not a class.

    Args:
        root: the folder.
        tree: what lies below it.
        kind: what its files are.
    """
    files = [file for file in tree.files if file.suffix.lower() in kind.suffixes]
    top = _unwrapped(_part(root, files))
    notes = [f"Classes and splits are the folders in {top.root}, the only one in {root}."] if top.root != root else []
    splits = folders_of_splits(sorted(top.classes))
    if splits is None and (inner := _splits_below_classes(top)):
        notes.append(f"Splits are the folders below those of the classes in {top.root}: {', '.join(inner)}.")
        return Arrangement(inner, notes, inner_splits=True)
    if splits is None:
        return Arrangement({"train": top}, notes)
    _refuse_two_folders_of_a_split(top.root, splits)
    parts = {splits[name]: _part(top.root / name, files) for name, files in top.classes.items()}
    while wrapper := _common_wrapper(list(parts.values())):
        parts = {split: _part(part.root / wrapper, part.classes[wrapper]) for split, part in parts.items()}
    if top.loose:
        notes.append(f"Not used, since they are in no split: {len(top.loose)} {kind.plural}, such as {top.loose[0]}.")
    return Arrangement(parts, notes)


def _part(root: Path, files: Sequence[Path]) -> Part:
    depth = len(root.parts)
    classes: Classes = defaultdict(list)
    loose = []
    for file in files:
        parts = file.parts
        if len(parts) - depth > 1:
            classes[parts[depth]].append(file)
        else:
            loose.append(file)
    return Part(root, dict(classes), loose)


def _unwrapped(part: Part) -> Part:
    """The folder that holds several folders: a single one above them, as archives often have, is left out."""
    while len(part.classes) == 1 and not part.loose:
        ((name, files),) = part.classes.items()
        below = _part(part.root / name, files)
        if is_split(name) or below.loose:
            break
        part = below
    return part


def _common_wrapper(parts: Sequence[Part]) -> str | None:
    """The only folder of each split, if it has the same name in all and holds the folders of classes."""
    names = {tuple(part.classes) for part in parts if part.classes or part.loose}
    if len(names) != 1 or len(name := next(iter(names))) != 1 or any(part.loose for part in parts):
        return None
    below = [_part(part.root / name[0], part.classes[name[0]]) for part in parts]
    several = len({inner for part in below for inner in part.classes}) > 1
    return name[0] if several and not any(part.loose for part in below) else None


def _splits_below_classes(top: Part) -> dict[str, Part] | None:
    """The splits of a folder whose classes hold folders of splits, as in cat/train and cat/test."""
    below = {name: _part(top.root / name, files) for name, files in top.classes.items()}
    names = {split for part in below.values() for split in part.classes}
    if top.loose or len(below) < 2 or any(part.loose for part in below.values()) or not all(map(is_split, names)):
        return None
    splits = {split.lower(): Part(top.root, {}, []) for split in sorted(names)}
    for name, part in below.items():
        for split, files in part.classes.items():
            splits[split.lower()].classes.setdefault(name, []).extend(files)
    return splits


def _refuse_two_folders_of_a_split(root: Path, splits: Mapping[str, str]) -> None:
    twice = [split for split, count in Counter(splits.values()).items() if count > 1]
    if twice:
        names = [name for name, split in splits.items() if split == twice[0]]
        raise user_error(
            expected=f"one folder for each split in {root}",
            found=f"{' and '.join(names)}, both of the split {twice[0]}",
            do="put their contents into one folder",
        )


def checked(root: Path, tree: Tree, kind: Kind) -> Arrangement:
    """The files of a folder by split and class, with notes on what is not used.

    A split without class folders keeps its files, without a class, if another split has them.

    Raises:
        UserError: files without a class beside those that have one, a class folder of which nothing can be read, or
            folders of which it is not clear what they are.
    """
    arranged = arrange(root, tree, kind)
    _refuse_without_classes(root, arranged, kind)
    _refuse_classes_that_cannot_be_read(arranged, tree, kind)
    for part in arranged.parts.values():
        if part.classes:
            _refuse_sessions_above_classes(part, kind)
    arranged.notes += _notes_on_folders(arranged)
    arranged.notes += notes_on_unread(tree, kind)
    return arranged


def _refuse_without_classes(root: Path, arranged: Arrangement, kind: Kind) -> None:
    suffix = sorted(kind.suffixes)[0] if kind is TEXTS else ".jpg"
    do = f"put {kind.plural} of each class in a folder of their own, as in FOLDER/cat/1{suffix}"
    expected = "a label for each sample, of at least 2 classes"
    mixed = [part for part in arranged.parts.values() if part.loose and part.classes]
    if mixed:
        loose = mixed[0].loose
        raise user_error(
            expected=expected,
            found=f"samples without labels: {len(loose)} {kind.plural} beside the class folders, such as {loose[0]}",
            do=f"{do}, or move these elsewhere",
        )
    columns = "file_name and label" if kind is PICTURES else "text and label"
    training = [part for split, part in arranged.parts.items() if split in ("train", "training")]
    classless = [part for part in training or list(arranged.parts.values()) if not part.classes]
    if classless:
        raise user_error(
            expected=expected,
            found=f"samples without labels: {kind.plural} in one folder, {classless[0].root}",
            do=f"{do}; or add a table train.csv to {root}, with the columns {columns}",
        )
    for split, part in arranged.parts.items():
        if not part.classes:
            arranged.notes.append(
                f"The split {split} has no labels: its {len(part.loose)} {kind.plural} in {part.root} are in no folder "
                "of a class."
            )


def _refuse_classes_that_cannot_be_read(arranged: Arrangement, tree: Tree, kind: Kind) -> None:
    """Refuse class folders that hold nothing but files which are not read; note those that hold none at all."""
    unread = [file for file in tree.files if file.suffix.lower() in kind.unread]
    for part in arranged.parts.values():
        lost = _part(part.root, [file for file in unread if file.is_relative_to(part.root)]).classes
        if unusable := sorted(lost.keys() - part.classes.keys()) if part.classes else []:
            raise user_error(
                expected=f"in each class folder in {part.root} {kind.plural} that are read "
                f"({', '.join(sorted(kind.suffixes))})",
                found=f"none in {some(unusable)}, but {described_suffixes(lost[unusable[0]], kind)}",
                do=advice_on_unread(lost[unusable[0]]),
            )
        below = {folder.name for folder in tree.folders if folder.parent == part.root}
        if part.classes and (empty := sorted(below - part.classes.keys())):
            arranged.notes.append(f"Not used: {some(empty)} in {part.root}, without any {kind.plural}.")


def described_suffixes(files: Sequence[Path], kind: Kind) -> str:
    """How many files there are of each suffix: "10 images of .heic, 2 images of .svg"."""
    counts = Counter(file.suffix.lower() for file in files)
    return ", ".join(f"{count} {kind.plural} of {suffix}" for suffix, count in sorted(counts.items()))


def advice_on_unread(files: Sequence[Path]) -> str:
    """What to do about pictures that are not read."""
    return f"convert them to .png or .jpg, or move them elsewhere, such as {files[0]}"


def notes_on_unread(tree: Tree, kind: Kind) -> list[str]:
    """Notes on files of the same kind that are not read, on hidden folders, and on links that are not followed."""
    notes = []
    if unread := [file for file in tree.files if file.suffix.lower() in kind.unread]:
        notes.append(f"Not used: {described_suffixes(unread, kind)}, which are not read, such as {unread[0]}.")
    hidden = [one for one in tree.hidden if one.name.startswith(".") and one.name.lower() not in TOOL_FOLDERS]
    if hidden:
        notes.append(f"Not used, since they are hidden: {some([str(folder) for folder in hidden])}.")
    if tree.not_followed:
        links = some([str(link) for link in tree.not_followed])
        notes.append(f"Links that were not followed, since they lead to folders that are read already: {links}.")
    return notes


def _folders_below(part: Part) -> dict[str, set[str]]:
    """Of each class the folders below its own."""
    depth = len(part.root.parts)
    return {
        name: {file.parts[depth + 1] for file in files if len(file.parts) - depth > 2}
        for name, files in part.classes.items()
    }


def _shared(below: Mapping[str, set[str]]) -> list[str]:
    """The names of folders that lie below several classes."""
    counts = Counter(name for names in below.values() for name in names)
    return sorted(name for name, count in counts.items() if count > 1)


def _refuse_sessions_above_classes(part: Part, kind: Kind) -> None:
    """Refuse day1/cat, day2/cat: the folders that would be classes are numbered or named like splits, others are not.

    Where both are numbered, or neither is, the outer folders are the classes, and a note says so.
    """
    below = _folders_below(part)
    inner, outer = _shared(below), sorted(below)
    splits = any(map(split_words, outer))
    # 2 means that each of several classes has them: a class of its own would not be found in others.
    if len(inner) < 2 or not (splits or (_numbered(outer) and not _numbered(inner))):
        return
    raise user_error(
        expected=f"a folder for each class in {part.root}",
        found=f"the folders {some(outer)}, which look like {'splits' if splits else 'a series'}, and in several of "
        f"them {some(inner)}",
        do=f"if {inner[0]} is a class: make it an outer folder, {inner[0]}/{outer[0]}"
        + ("; or name all outer folders train, validation or test" if splits else "")
        + f"; if {outer[0]} is a class: put its {kind.plural} directly into it",
    )


def _numbered(names: Sequence[str]) -> bool:
    """Whether names differ in numbers alone: day1 and day2, 2021-05-01 and 2021-05-02."""
    stems = {re.sub(r"[\W\d_]+", "", name).lower() for name in names}
    return len(stems) == 1 and all(re.search(r"\d", name) for name in names)


def _notes_on_folders(arranged: Arrangement) -> list[str]:
    """A note on folders below those of the classes."""
    if arranged.inner_splits:
        return []
    below: dict[str, set[str]] = defaultdict(set)
    for part in arranged.parts.values():
        for name, folders in _folders_below(part).items():
            below[name] |= folders
    if not (names := sorted(set().union(*below.values()))):
        return []
    roots = some([str(part.root) for part in arranged.parts.values()])
    note = f"Classes are the folders directly in {roots}; the folders below them ({some(names)}) are not."
    if shared := _shared(below):
        note += f" If {shared[0]} is a class, move it up: {shared[0]}/{min(below)}."
    return [note]
