"""Choose the columns of images, texts and labels in a table."""

from collections.abc import Mapping, Sequence

import datasets

from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings
from hf_transfer.targets.target import LabelColumns

LABEL_NAMES = ("label", "labels")
IMAGE_NAMES = ("image", "img")
TEXT_NAMES = ("text", "sentence", "content", "sentence1", "premise", "question1", "question")


def first_split(loaded: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """The split whose columns are chosen: training, or else the first one on which a finished model is judged."""
    return next(iter(loaded.values()))


def image_column(data: datasets.Dataset, wanted: str | None) -> str:
    """The column of images."""
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    return _column(data, wanted, IMAGE_NAMES, candidates, "image_column_name")


def images(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """Only the images, as encoded bytes or paths, in a column `image`."""
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


def text_column(data: datasets.Dataset, wanted: str | None, label: str | None) -> str:
    """The column of texts.

    Args:
        data: a split.
        wanted: the column that the settings name.
        label: the column of labels that the settings name; it is not chosen.
    """
    label = label or next((name for name in LABEL_NAMES if name in data.column_names), None)
    candidates = [name for name, feature in data.features.items() if name != label and is_text(feature)]
    column = _column(data, wanted, TEXT_NAMES, candidates, "text_column_name")
    refuse_other_values(data, column)
    return column


def text_pair_column(data: datasets.Dataset, wanted: str, text: str) -> str:
    """The column of second texts, which must be another than the column `text`."""
    column = _column(data, wanted, (), [], "text_pair_column_name")
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
    unused = [name for name, kind in data.features.items() if is_text(kind) and name not in used]
    return [f"Columns of text that are not used: {', '.join(unused)}."] if unused else []


def label_columns(data: datasets.Dataset, settings: DataSettings) -> LabelColumns:
    """The column of labels, or the columns that the settings name."""
    several = dict.fromkeys(settings.label_column_names)
    if missing := [name for name in several if name not in data.column_names]:
        raise user_error(
            expected=f"the columns {', '.join(several)}, as --label_column_names says",
            found=f"no column {', '.join(map(repr, missing))}; there are {', '.join(data.column_names)}",
            do="correct --label_column_names",
        )
    return LabelColumns(tuple(several) or (_label_column(data, settings.label_column_name),), settings.label_separator)


def _label_column(data: datasets.Dataset, wanted: str | None) -> str:
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted is None and len(data.column_names) == 1:
        raise user_error(
            expected="a label for each sample, of at least 2 classes",
            found="samples without labels: images in one folder or beside the class folders, or a table of one column",
            do="put images of each class in a folder of their own, as in FOLDER/cat/1.jpg; give tables a column label",
        )
    return _column(data, wanted, LABEL_NAMES, candidates, "label_column_name")


def is_text(feature: object) -> bool:
    """Whether a column is of text by its type."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def refuse_other_values(data: datasets.Dataset, column: str) -> None:
    """Refuse a column of other values than text; one without values passes, as its rows are reported one by one."""
    if not is_text(data.features[column]) and any(value is not None for value in data[column][:]):
        raise user_error(
            expected=f"text in column '{column}'",
            found=_kind(data.features[column]),
            do="name the column with the texts in --text_column_name, or join the parts of each text beforehand",
        )


def _kind(feature: object) -> str:
    if isinstance(feature, datasets.Value):
        return f"values of type {feature.dtype}"
    return "lists" if isinstance(feature, list | datasets.List | datasets.LargeList) else type(feature).__name__


def _column(
    data: datasets.Dataset, wanted: str | None, usual: Sequence[str], candidates: Sequence[str], setting: str
) -> str:
    """The column that is wanted; else one with a usual name; else the only candidate."""
    existing = data.column_names
    if wanted is not None:
        if wanted in existing:
            return wanted
        found = f"no column {wanted!r}; there are {', '.join(existing)}"
    else:
        named = [name for name in usual if name in existing]
        if named or len(candidates) == 1:
            return (named or list(candidates))[0]
        found = f"the columns {', '.join(existing)}"
    raise user_error(expected=f"the column for --{setting}", found=found, do=f"set --{setting} to one of these")
