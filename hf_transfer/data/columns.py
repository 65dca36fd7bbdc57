"""Which columns of a table hold the images, the texts and the labels; and those columns alone."""

from collections.abc import Sequence

import datasets

from hf_transfer.config import TextConfig, TextSettings, mistake

LABEL_NAMES = ("label", "labels")
IMAGE_NAMES = ("image", "img")
TEXT_NAMES = ("text", "sentence", "content", "sentence1", "premise", "question1", "question")


def image_column(data: datasets.Dataset, wanted: str | None) -> str:
    """The column of images."""
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    return _column(data, wanted, IMAGE_NAMES, candidates, "image_column_name")


def images(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """The images alone, as encoded bytes or paths, in a column named `image`."""
    try:
        encoded = data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        # What datasets and Arrow say of numbers, of lists and of nested columns.
        raise mistake(
            expected=f"images or paths to images in column '{column}'",
            found=str(data.features[column]),
            do="name the column with the images in --image_column_name",
        ) from error
    images = encoded.select_columns([column])
    return images if column == "image" else images.rename_column(column, "image")


def text_column(data: datasets.Dataset, config: TextSettings) -> str:
    """The column of texts."""
    label = config.label_column_name or next((name for name in LABEL_NAMES if name in data.column_names), None)
    candidates = [name for name, feature in data.features.items() if name != label and is_text(feature)]
    column = _column(data, config.text_column_name, TEXT_NAMES, candidates, "text_column_name")
    refuse_other_values(data, column)
    return column


def text_columns(data: datasets.Dataset, config: TextConfig) -> list[str]:
    """The column of texts, and that of their pairs if there is one."""
    columns = [text_column(data, config)]
    if config.text_pair_column_name is not None:
        columns.append(_column(data, config.text_pair_column_name, (), [], "text_pair_column_name"))
        if columns[0] == columns[1]:
            raise mistake(
                expected="two columns for --text_column_name and --text_pair_column_name",
                found=f"'{columns[0]}' for both",
                do="name the other column, or leave --text_pair_column_name out",
            )
        refuse_other_values(data, columns[1])
    return columns


def texts(data: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """The texts alone, in a column named `text`, and their pairs in `text_pair`."""
    chosen = data.select_columns(list(dict.fromkeys(columns)))
    renamed = {old: new for old, new in zip(columns, ("text", "text_pair"), strict=False) if old != new}
    return chosen.rename_columns(renamed) if renamed else chosen


def unused_texts(data: datasets.Dataset, used: Sequence[str]) -> list[str]:
    """A note on further columns of text, if there are any."""
    unused = [name for name, kind in data.features.items() if is_text(kind) and name not in used]
    return [f"Columns of text that are not used: {', '.join(unused)}."] if unused else []


def label_column(data: datasets.Dataset, wanted: str | None) -> str:
    """The column of labels."""
    candidates = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted is None and len(data.column_names) == 1:
        raise mistake(
            expected="a label for each sample, of at least 2 classes",
            found="samples without labels: images in one folder or beside the class folders, or a table of one column",
            do="put images of each class in a folder of their own, as in FOLDER/cat/1.jpg; give tables a column label",
        )
    return _column(data, wanted, LABEL_NAMES, candidates, "label_column_name")


def is_text(feature: object) -> bool:
    """Whether a column is of text by its type."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def refuse_other_values(data: datasets.Dataset, column: str) -> None:
    """A column that is not of text by its type; one without any value has none, and its rows are named one by one."""
    if not is_text(data.features[column]) and any(value is not None for value in data[column][:]):
        raise mistake(
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
    """The wanted column; else one with a usual name; else the only one of the right type."""
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
    raise mistake(expected=f"the column for --{setting}", found=found, do=f"set --{setting} to one of these")
