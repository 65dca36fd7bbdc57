"""Whether folders are splits, by their names."""

import re

from hf_transfer.data.split_names import SPLIT_OF

# Words beside the split in names such as train_images and test_set.
CONTAINERS = frozenset({
    "data", "dataset", "file", "files", "folder", "image", "images", "img", "imgs", "jpg", "jpeg", "photo", "photos",
    "picture", "pictures", "png", "set", "split", "text", "texts", "txt",
})  # fmt: skip


def is_split(name: str) -> bool:
    """Whether a name is that of a split, in any case."""
    return name.lower() in SPLIT_OF


def split_words(name: str) -> list[str]:
    """The words of a name that are names of splits: `train` of seg_train, none of trains."""
    return [word for word in _words(name) if word in SPLIT_OF]


def is_container(name: str) -> bool:
    """Whether each word of a name says what is in it, such as train_images, and none can be the name of a class."""
    words = _words(name)
    return bool(words) and all(word in SPLIT_OF or word in CONTAINERS for word in words)


def folders_of_splits(names: list[str]) -> dict[str, str] | None:
    """Which split each of some folders is, if all of them are splits; None: they are not.

    They are if each name is that of a split, in any case, or if they differ in that word alone, as train_images and
    test_images do, and one of them is for training.

    Returns:
        Of each folder the name of its split: as it is called, in lower case, or else train, validation or test.
    """
    if names and all(map(is_split, names)):
        return {name: name.lower() for name in names}
    words = {name: split_words(name) for name in names}
    if not names or any(len(chosen) != 1 for chosen in words.values()):
        return None
    splits = {name: SPLIT_OF[chosen[0]] for name, chosen in words.items()}
    others = {
        tuple(word for word in _words(name) if word not in SPLIT_OF | dict.fromkeys(CONTAINERS)) for name in names
    }
    distinct = len(set(splits.values())) == len(splits) > 1
    return splits if distinct and len(others) == 1 and "train" in splits.values() else None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())
