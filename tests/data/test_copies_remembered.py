"""Copies of training in validation and test: counted once, and again when a picture changes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data import verification
from hf_transfer.data.pictures import content as read
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.data.conftest import Settings, encoded, noise
from tests.data.test_verification import split_of_files

Reads = list[str]
# BMP files of one size have the same number of bytes, so that all of them must be compared.
PICTURES = [encoded(Image.fromarray(noise(20, 20, 3, seed=number)), "BMP") for number in range(6)]


@pytest.fixture
def modality(settings: Settings) -> Callable[[], ImageModality]:
    """As each run makes one."""
    processor: Any = ViTImageProcessorPil(size={"height": 8, "width": 8})
    return lambda: ImageModality().for_run(PixelPreprocessing(processor), settings())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The names of the files whose bytes were read."""
    names: Reads = []

    def content(raw: dict[str, Any]) -> bytes:
        names.append(Path(raw["path"]).name)
        return read(raw)

    monkeypatch.setattr(verification, "content", content)
    return names


def splits(folder: Path) -> dict[str, Split]:
    return {
        "train": split_of_files(folder / "train", PICTURES[:4]),
        "validation": split_of_files(folder / "validation", [PICTURES[0], PICTURES[4]]),
        "test": split_of_files(folder / "test", [PICTURES[1], PICTURES[2], PICTURES[5]]),
    }


def test_a_second_run_reads_no_picture_to_count_copies(
    modality: Callable[[], ImageModality], reads: Reads, tmp_path: Path
) -> None:
    rows = splits(tmp_path)
    assert modality().copies(rows) == {"validation": 1, "test": 2}
    assert len(reads) == 9
    reads.clear()
    assert modality().copies(rows) == {"validation": 1, "test": 2}
    assert reads == []


def test_pictures_that_the_run_has_decoded_are_not_read_again_to_count_copies(
    modality: Callable[[], ImageModality], reads: Reads, settings: Settings, tmp_path: Path
) -> None:
    run, rows = modality(), splits(tmp_path)
    for name, split in rows.items():
        run.checked(split, name, settings())
    assert len(reads) == 9
    assert run.copies(rows) == {"validation": 1, "test": 2}
    assert len(reads) == 9


def test_copies_are_counted_again_when_a_picture_has_changed_or_rows_have(
    modality: Callable[[], ImageModality], tmp_path: Path
) -> None:
    rows = splits(tmp_path)
    assert modality().copies(rows) == {"validation": 1, "test": 2}
    (tmp_path / "validation" / "0001.png").write_bytes(PICTURES[3])
    assert modality().copies(rows) == {"validation": 2, "test": 2}
    fewer = Split(rows["test"].dataset, rows["test"].rows[1:], np.zeros(2, dtype=np.int64))
    assert modality().copies(rows | {"test": fewer}) == {"validation": 2, "test": 1}
    masked = Split(fewer.dataset, fewer.rows, fewer.targets, unreadable={1: "damaged"})
    assert modality().copies(rows | {"test": masked}) == {"validation": 2, "test": 0}


@pytest.mark.parametrize("kind", [".json", ".contents", ".keys", ".copies"])
@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:-3], lambda _: b"", lambda kept: kept[:-1] + bytes([kept[-1] ^ 1])]
)
def test_damaged_results_of_earlier_checks_are_made_again(
    kind: str, damage: Callable[[bytes], bytes], modality: Callable[[], ImageModality], settings: Settings,
    tmp_path: Path,
) -> None:  # fmt: skip
    """After a loss of power a file may be empty, or have other bits: no run may fail of it, or believe it."""
    rows, config = splits(tmp_path / "data"), settings(verify_samples=0)

    def results() -> tuple[object, ...]:
        run = modality()
        train = run.checked(rows["train"], "train", config)
        return dict(train.unreadable), run.copies(rows), ImageModality().keys(train, config)[0].tolist()

    first = results()
    before = {path: path.read_bytes() for path in Path(config.store.cache_dir or "").glob(f"verified/*{kind}")}
    assert before
    for path, content in before.items():
        path.write_bytes(damage(content))
        # Else the keys of the pictures are not needed.
        if kind == ".keys":
            path.with_suffix(".contents").unlink()
    assert results() == first
    assert {path: path.read_bytes() for path in before} == before


def test_where_nothing_can_be_remembered_pictures_are_checked_all_the_same(
    modality: Callable[[], ImageModality], settings: Settings, tmp_path: Path
) -> None:
    """A cache that cannot be written to is no reason not to train."""
    rows, config = splits(tmp_path / "data"), settings(verify_samples=0)
    (keys,) = ImageModality().keys(rows["train"], config)
    folder = Path(config.store.cache_dir or "") / "verified"
    shutil.rmtree(folder)
    folder.write_bytes(b"a file in place of the folder")
    run = modality()
    run.checked(rows["train"], "train", config)
    assert run.copies(rows) == {"validation": 1, "test": 2}
    assert run.keys(rows["train"], config)[0].tolist() == keys.tolist()
