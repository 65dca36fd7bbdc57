"""Splits that were recorded when rows were read one by one: they are the same however rows are read."""

import hashlib
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_transfer.data.checked import load_splits
from hf_transfer.data.groups import Units
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.text import TextModality
from tests.data.conftest import Settings, TextSettings, encoded, noise


def texts(**columns: list[Any]) -> datasets.DatasetDict:
    """500 texts, a fifth of which are copies."""
    texts = [f"text number {row // 2 if row % 5 == 0 else row}" for row in range(500)]
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": texts, **columns})})


def digest(data: Any) -> str:
    """A hash of the rows and targets of all splits, and of the names of the classes."""
    parts = [(name, split.rows.tolist(), split.targets.tolist()) for name, split in data.labelled()]
    return hashlib.sha256(repr((parts, data.target.names, data.copies)).encode()).hexdigest()[:16]


LABELS: dict[str, tuple[list[Any], str]] = {
    "names": ([["b", "a", "c d"][row % 7 % 3] for row in range(500)], "847f082a5dc758dc"),
    "numbers": ([row % 12 for row in range(500)], "fcdcd681dcb9cdd4"),
    "fractions that are whole": ([float(row % 4) for row in range(500)], "150e5d92afd67027"),
    "truth values": ([row % 3 == 0 for row in range(500)], "e9d653f1f2828798"),
    "numbers with gaps": ([None if row % 9 == 4 else row % 4 for row in range(500)], "3403483cee540a72"),
}


@pytest.mark.parametrize("name", LABELS)
def test_texts_are_divided_as_recorded(text_settings: TextSettings, name: str) -> None:
    labels, recorded = LABELS[name]
    splits = load_splits(text_settings(on_missing_label="drop"), TextModality(), texts(label=labels))
    assert digest(splits) == recorded


def test_texts_in_groups_are_divided_as_recorded(text_settings: TextSettings) -> None:
    groups = [f"group {row // 3}" if row % 4 else "" for row in range(500)]
    data = texts(label=["ab"[row % 2] for row in range(500)], group=groups)
    assert digest(load_splits(text_settings(group_column_name="group"), TextModality(), data)) == "7b6ceaecc6366def"


def test_images_are_divided_as_recorded(settings: Settings) -> None:
    pictures = [Image.fromarray(noise(8, 8, 3, seed=row // 2 if row % 5 == 0 else row)) for row in range(60)]
    # Of this format all versions of Pillow write the same bytes.
    images = [{"bytes": encoded(picture, "BMP"), "path": None} for picture in pictures]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": ["ab"[row % 2] for row in range(60)]}, features)
    given = datasets.DatasetDict({"train": rows, "test": rows.select(range(10, 30))})
    for data, recorded in ((datasets.DatasetDict({"train": rows}), "a4699ad39a939f23"), (given, "48a1cb1f96fe124c")):
        assert digest(load_splits(settings(), ImageModality(), data)) == recorded


def test_units_have_their_recorded_places() -> None:
    keys = np.array([1, 2, 2**63, 2**64 - 1, 123456789], dtype=np.uint64)
    assert Units(np.arange(5), keys).places(7, "test").tolist() == [
        0.38146063866437985,
        0.21389313192499004,
        0.5089646608375843,
        0.9826553263267865,
        0.6818782002650047,
    ]
