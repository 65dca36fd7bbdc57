"""Small folders of pictures and texts by class, and what is read from them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from hf_transfer.data.checked import load_splits
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig, VisionConfig
from tests.data.conftest import noise

Write = Callable[[Path, int], None]
Read = Callable[[Path], Splits]


def write_picture(path: Path, seed: int) -> None:
    Image.fromarray(noise(4, 4, 3, seed=seed)).save(path.with_suffix(".png"))


def write_text(path: Path, seed: int) -> None:
    path.with_suffix(".txt").write_text(f"words of text {seed}")


def read_pictures(path: Path) -> Splits:
    cache = str(path.parent / "cache")
    return load_splits(
        VisionConfig.of(model_name_or_path="m", dataset_name=str(path), output_dir="o", cache_dir=cache),
        ImageModality(),
    )


def read_texts(path: Path, **chosen: Any) -> Splits:
    config = TextConfig.of(model_name_or_path="m", dataset_name=str(path), output_dir="o", **chosen)
    return load_splits(config, TextModality())


def fill(root: Path, *folders: str, write: Write = write_picture, count: int = 5) -> Path:
    """So many different files in each folder."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in range(count):
            write(root / folder / str(file), 100 * number + file)
    return root


def counts(splits: Splits) -> dict[str, dict[str, int]]:
    """For each split how many samples each class has."""
    names = splits.target.names
    return {name: dict(Counter(names[one] for one in split.targets)) for name, split in splits.items()}


def total(splits: Splits) -> dict[str, int]:
    """How many samples each class has in all splits."""
    whole: Counter[str] = Counter()
    for of_split in counts(splits).values():
        whole.update(of_split)
    return dict(whole)
