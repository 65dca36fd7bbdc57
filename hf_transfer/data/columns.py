"""Choose the columns of images, texts and labels in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa

from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.distinct import TEXT_TYPES
from hf_transfer.targets.target import LabelColumns

if TYPE_CHECKING:
    import datasets

# Columns that pandas and `datasets` write for the index of a frame, and pandas reads for columns without a name.
INDEX = re.compile(r"__index_level_[0-9]+__|Unnamed: [0-9.]+(_level_[0-9]+)?")
# Where a table names pictures, these names: the pictures stand in their place.
PICTURE_NAMES = "__names_of_pictures__"
First = TypeVar("First")
Second = TypeVar("Second")


class Role(NamedTuple):
    """What a column can be.

    Attributes:
        setting: that names it.
        names: plain names, of which an earlier one is preferred.
        synonyms: other names, without spaces and signs, of which none is preferred.
        last: names that are taken only where no column has one of the others.
    """

    setting: str
    names: tuple[str, ...]
    synonyms: tuple[str, ...]
    last: tuple[str, ...] = ()


LABEL_NAMES = ("label", "labels")
IMAGE_NAMES = ("image", "img")
TEXT_NAMES = ("text", "sentence", "content", "sentence1", "premise", "question1", "question")
LABEL = Role(
    "label_column_name", LABEL_NAMES,
    (
        "class", "classes", "classname", "classlabel", "classid", "category", "categories", "categoryname", "target",
        "targets", "labelname", "labelid", "goldlabel", "sentiment", "emotion", "intent", "topic", "tag", "tags",
    ),
    ("y",),
)  # fmt: skip
IMAGE = Role(
    "image_column_name", (*IMAGE_NAMES, "file_name"),
    (
        "images", "picture", "pictures", "photo", "filename", "filenames", "file", "path", "filepath", "imagepath",
        "imagefile", "imagename", "imagefilename", "imageid", "imgpath", "imgfile", "imgname", "imgid", "picturepath",
    ),
    ("id",),
)  # fmt: skip
TEXT = Role(
    "text_column_name", TEXT_NAMES,
    (
        "texts", "sentences", "contents", "review", "reviews", "reviewtext", "reviewbody", "message", "messages",
        "messagetext", "tweet", "tweets", "tweettext", "comment", "comments", "commenttext", "body", "sms", "post",
        "document", "utterance", "query", "headline", "email", "passage", "description", "caption", "title",
        "subject", "summary", "abstract",
    ),
    ("x",),
)  # fmt: skip
ROLES = {role.setting: role for role in (LABEL, IMAGE, TEXT)}


class ColumnError(UserError):
    """A column that is missing, or cannot be told from others; `together` joins several of them."""

    def __init__(self, *, expected: str, found: str, do: str) -> None:
        super().__init__(str(user_error(expected=expected, found=found, do=do)), found=found)
        self.expected, self.do = expected, do


def together(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of both choices of columns.

    Raises:
        ColumnError: either one or both cannot be made; then one message reports both.
    """
    try:
        chosen = first()
    except ColumnError as error:
        try:
            second()
        except ColumnError as other:
            raise ColumnError(
                expected=f"{error.expected}, and {other.expected}",
                found="; ".join(dict.fromkeys((error.found, other.found))),
                do=f"{error.do}, and {other.do}",
            ) from error
        raise
    return chosen, second()


def notes_on_choice(chosen: Mapping[str, str], labels: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Sentences on columns that were chosen and do not have a plain name.

    Args:
        chosen: columns of the samples, by the setting that names each.
        labels: columns of the labels.
        settings: of the run, by name.
    """
    all_chosen = [(LABEL.setting, name) for name in labels if not settings.get("label_column_names")]
    return [
        f"Column {name!r} is taken for --{setting}."
        for setting, name in [*chosen.items(), *all_chosen]
        if setting in ROLES and not settings.get(setting) and name not in ROLES[setting].names
    ]


def is_index(name: str) -> bool:
    """Whether a column holds the index of a frame, or names of pictures, by its name."""
    return name == PICTURE_NAMES or INDEX.fullmatch(name) is not None


def without_indices(table: pa.Table) -> pa.Table:
    """A table without columns of an index."""
    return table.select([name for name in table.column_names if not is_index(name)])


def plain(name: str) -> str:
    """A column's name in lower case, without spaces and signs: image_path for " Image Path"."""
    return re.sub(r"[\W_]+", "", name.casefold())


def may_be(role: Role, name: str) -> bool:
    """Whether a column could have a role, by its name."""
    return plain(name) in {*map(plain, role.names), *role.synonyms, *role.last}


def stays_text(name: str) -> bool:
    """Whether the values of a column of a CSV file stay as they are written, by its name."""
    return may_be(LABEL, name) or may_be(TEXT, name)


def is_usual(name: str) -> bool:
    """Whether a name of more than a letter or two is a usual one for a column of images, texts or labels."""
    return any(may_be(role._replace(last=()), name) for role in ROLES.values())


def by_name(names: Sequence[str], role: Role) -> list[str]:
    """The columns that could have a role, by their names: one, if there is no doubt."""
    for usual in role.names:
        if usual in names:
            return [usual]
    for usual in role.names:
        if alike := [name for name in names if plain(name) == plain(usual)]:
            return alike
    alike = [name for name in names if plain(name) in role.synonyms]
    return alike or [name for name in names if plain(name) in role.last]


def first_split(loaded: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """The split whose columns are chosen: training, or else the first one on which a finished model is judged."""
    return next(iter(loaded.values()))


def image_column(data: datasets.Dataset, wanted: str | None) -> str:
    """The column of images, or of their paths."""
    import datasets

    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    return _column(data, wanted, IMAGE, candidates, lambda names: likely_paths(data, names))


def likely_paths(data: datasets.Dataset, names: Sequence[str]) -> list[str]:
    """The columns of text whose first value ends as the name of a picture does."""
    texts = [name for name in names if is_text(data.features[name])]
    return [name for name in texts if next(filter(None, data[name]), "").lower().endswith(tuple(SUFFIXES))]


def images(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """Only the images, as encoded bytes or paths, in a column `image`."""
    import datasets

    try:
        encoded = data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        # The errors of datasets and Arrow for columns of numbers, lists and nested values.
        raise user_error(
            expected=f"images or paths to images in column '{column}'",
            found=str(data.features[column]),
            do="name the column with the images in --image_column_name",
        ) from error
    images = encoded.select_columns([column])
    return images if column == "image" else images.rename_column(column, "image")


def text_column(data: datasets.Dataset, wanted: str | None, settings: DataSettings) -> str:
    """The column of texts.

    Args:
        data: a split.
        wanted: the column that the settings name.
        settings: name the columns of labels, which are not chosen; else those that could be labels are not.
    """
    import datasets

    labels = settings.label_column_names or [settings.label_column_name or ""]
    if not any(labels):
        labels = [name for name in data.column_names if may_be(LABEL, name)]
    texts = {name for name, feature in data.features.items() if name not in labels and is_text(feature)}
    of_images = any(isinstance(feature, datasets.Image) for feature in data.features.values())
    if wanted is None and not texts and of_images and not by_name(data.column_names, TEXT):
        raise ColumnError(
            expected=f"the column for --{TEXT.setting}", found=f"pictures: the columns {_listed(data)}",
            do="learn pictures with recipes/vision.py",
        )  # fmt: skip
    candidates = [name for name in data.column_names if name in texts]
    return _column(data, wanted, TEXT, candidates, lambda _: [], taken=labels)


def text_pair_column(data: datasets.Dataset, wanted: str, text: str) -> str:
    """The column of second texts, which must be another than the column `text`."""
    column = _wanted(data, wanted, "text_pair_column_name")
    if column == text:
        raise user_error(
            expected="two columns for --text_column_name and --text_pair_column_name",
            found=f"'{column}' for both",
            do="name the other column, or leave --text_pair_column_name out",
        )
    refuse_other_values(data, column)
    return column


def texts(data: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """Only the texts, in a column `text`, and second texts in a column `text_pair`."""
    chosen = data.select_columns(list(dict.fromkeys(columns)))
    renamed = {old: new for old, new in zip(columns, ("text", "text_pair"), strict=False) if old != new}
    return chosen.rename_columns(renamed) if renamed else chosen


def unused_texts(data: datasets.Dataset, used: Sequence[str]) -> list[str]:
    """A note on further columns of text, if there are any."""
    unused = [name for name, kind in data.features.items() if is_text(kind) and name not in used and not is_index(name)]
    return [f"Columns of text that are not used: {', '.join(unused)}."] if unused else []


def label_columns(data: datasets.Dataset, settings: DataSettings) -> LabelColumns:
    """The column of labels, or the columns that the settings name."""
    several = dict.fromkeys(settings.label_column_names)
    if missing := [name for name in several if name not in data.column_names]:
        raise user_error(
            expected=f"the columns {', '.join(several)}, as --label_column_names says",
            found=f"no column {', '.join(map(repr, missing))}; there are {_listed(data)}",
            do="correct --label_column_names",
        )
    return LabelColumns(tuple(several) or (_label_column(data, settings.label_column_name),), settings.label_separator)


def _label_column(data: datasets.Dataset, wanted: str | None) -> str:
    import datasets

    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted is None and sum(not is_index(name) for name in data.column_names) == 1:
        raise ColumnError(
            expected="a label for each sample, of at least 2 classes",
            found="samples without labels: images in one folder or beside the class folders, or a table of one column",
            do="put images of each class in a folder of their own, as in FOLDER/cat/1.jpg; give tables a column label",
        )
    return _column(data, wanted, LABEL, candidates, lambda _: [])


def is_text(feature: object) -> bool:
    """Whether a column is of text by its type."""
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype in TEXT_TYPES


def refuse_other_values(data: datasets.Dataset, column: str) -> None:
    """Refuse a column of other values than text; one without values passes, as its rows are reported one by one."""
    if not is_text(data.features[column]) and any(value is not None for value in data[column][:]):
        raise user_error(
            expected=f"text in column '{column}'",
            found=_kind(data.features[column]),
            do="name the column with the texts in --text_column_name, or join the parts of each text beforehand",
        )


def _listed(data: datasets.Dataset) -> str:
    return ", ".join(name for name in data.column_names if not is_index(name))


def _kind(feature: object) -> str:
    import datasets

    if isinstance(feature, datasets.Value):
        return f"values of type {feature.dtype}"
    return "lists" if isinstance(feature, list | datasets.List | datasets.LargeList) else type(feature).__name__


def _wanted(data: datasets.Dataset, wanted: str, setting: str) -> str:
    """The column that the settings name; spaces around it do not count."""
    existing = data.column_names
    if wanted in existing:
        return wanted
    if len(alike := [name for name in existing if name.strip() == wanted.strip()]) == 1:
        return str(alike[0])
    raise ColumnError(
        expected=f"the column for --{setting}",
        found=f"no column {wanted!r}; there are {_listed(data)}",
        do=f"set --{setting} to one of these",
    )


def _column(
    data: datasets.Dataset, wanted: str | None, role: Role, candidates: Sequence[str],
    by_values: Callable[[Sequence[str]], list[str]], taken: Collection[str] = (),
) -> str:  # fmt: skip
    """The column that is wanted; else one with a plain name, the only one of its type, or the only synonym.

    Args:
        data: a split.
        wanted: the column that the settings name.
        role: what is looked for.
        candidates: columns of its type.
        by_values: columns that could have the role by their values, of some names.
        taken: columns with another role.
    """
    if wanted is not None:
        return _wanted(data, wanted, role.setting)
    existing = [name for name in data.column_names if name not in taken and not is_index(name)]
    named = by_name(existing, role)
    if len(named) == 1 and named[0] in role.names:
        return named[0]
    typed = [name for name in candidates if name in existing]
    for possible in (typed, named, by_values(existing)):
        if len(possible) == 1:
            return possible[0]
    doubt = f", of which {' and '.join(named)} could be it" if len(named) > 1 else ""
    raise ColumnError(
        expected=f"the column for --{role.setting}",
        found=f"the columns {_listed(data)}{doubt}",
        do=f"set --{role.setting} to one of these",
    )
