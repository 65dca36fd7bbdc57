"""Results of checks of pictures are remembered where that is possible; where it is not, the run goes on without."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data import remembered, verification
from hf_transfer.data.complete_files import private_folder
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pixels import PixelPreprocessing
from tests.conftest import Recipe
from tests.data.conftest import Settings, encoded, noise
from tests.data.test_verification import split_of_files

# BMP files of one size have the same number of bytes, so that all of them must be compared.
PICTURES = [encoded(Image.fromarray(noise(20, 20, 3, seed=number)), "BMP") for number in range(6)]
# As much is decoded before training: everything, or some pictures, whose keys are then remembered in further files.
VERIFIED = (10_000, 2)
DEEP = encoded(Image.fromarray(noise(20, 20, seed=9).astype(np.uint16) * 200))


def splits(folder: Path) -> dict[str, Split]:
    contents = {
        "train": [*PICTURES[:4], PICTURES[0], DEEP, b"no picture"],
        "validation": [PICTURES[0], PICTURES[4]],
        "test": [PICTURES[1], PICTURES[2], PICTURES[5]],
    }
    return {name: split_of_files(folder / name, pictures) for name, pictures in contents.items()}


def checks(rows: dict[str, Split], settings: Settings) -> list[Any]:
    """All that is known of the pictures before training, as a new run sees it."""
    processor: Any = ViTImageProcessorPil(size={"height": 8, "width": 8})
    results: list[Any] = []
    for verify_samples in VERIFIED:
        config = settings(verify_samples=verify_samples, on_bad_sample="skip")
        modality = ImageModality().for_run(PixelPreprocessing(processor), config)
        for split in rows.values():
            [keys] = modality.keys(split, config)
            results += [modality.bad_rows(split, config), modality.levels(split, config), keys.tolist()]
        results.append(modality.copies(rows))
    return results


def remembered_files(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "verified").iterdir() if path.is_file())


def with_a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def with_a_link_in_its_place(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


SPOIL: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign bytes": lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 20),
    "foreign JSON": lambda path: path.write_text("[]"),
    "no fields": lambda path: path.write_text("{}"),
    "one bit": flip_a_bit,
    "a folder": with_a_folder_in_its_place,
    "a link to nothing": with_a_link_in_its_place,
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_what_cannot_be_read_back_is_found_out_again(
    spoil: Callable[[Path], object], settings: Settings, tmp_path: Path
) -> None:
    rows, cache = splits(tmp_path), tmp_path / "cache"
    expected = checks(rows, settings)
    kinds = {path.suffix for path in remembered_files(cache)}
    assert kinds == {".json", ".keys", ".contents", ".copies"}
    for path in remembered_files(cache):
        spoil(path)
    shutil.rmtree(cache / "pixels")
    assert checks(rows, settings) == expected


def test_what_was_remembered_of_other_pictures_is_not_taken_for_these(settings: Settings, tmp_path: Path) -> None:
    rows, cache = splits(tmp_path), tmp_path / "cache"
    expected = checks(rows, settings)
    for suffix in (".json", ".keys", ".contents"):
        paths = [path for path in remembered_files(cache) if path.suffix == suffix]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)
    assert checks(rows, settings) == expected


def test_what_was_remembered_is_read_back_and_not_written_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = splits(tmp_path)
    expected = checks(rows, settings)
    monkeypatch.setattr(verification, "remember", lambda *_: pytest.fail("written again"))
    assert checks(rows, settings) == expected


@pytest.mark.parametrize("where", ["cache", "cache/verified", "cache/pixels"])
def test_a_file_in_place_of_a_folder_costs_time_and_nothing_else(
    where: str, settings: Settings, tmp_path: Path
) -> None:
    rows = splits(tmp_path)
    expected = checks(rows, settings)
    shutil.rmtree(tmp_path / where)
    (tmp_path / where).write_text("somebody else's")
    assert checks(rows, settings) == expected
    assert (tmp_path / where).read_text() == "somebody else's"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_costs_time_and_nothing_else(
    code: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = splits(tmp_path)
    expected = checks(rows, settings)
    shutil.rmtree(tmp_path / "cache")
    original = os.open

    def refused(path: Any, flags: int, *mode: Any, **options: Any) -> int:
        if flags & os.O_CREAT and "cache" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return original(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refused)
    assert checks(rows, settings) == expected
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_run_ends_well_although_its_cache_is_a_file(
    vision: Recipe, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    finished = vision(dataset_name=picture_folder(cat=12, dog=12), max_train_samples_per_class=None)
    assert finished.code == 0, finished.err


def test_the_results_that_were_used_the_longest_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not ours stays."""
    folder = tmp_path / "verified"
    monkeypatch.setattr(remembered, "LARGEST_FOLDER", 3_500)
    foreign = private_folder(folder) / "notes.txt"
    foreign.write_bytes(bytes(5_000))
    paths = [folder / f"{number:064x}.json" for number in range(4)]
    for number, path in enumerate(paths[:3]):
        remembered.remember(path, bytes(1_000))
        os.utime(path, (100 + number,) * 2)
    assert remembered.recall(paths[0]) == bytes(1_000)
    remembered.remember(paths[3], bytes(1_000))
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert foreign.exists()


def test_a_picture_that_could_not_be_read_this_time_is_looked_at_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lacks the right to read a file can get it, and a network disk comes back: the file does not change."""
    split = split_of_files(tmp_path / "data", PICTURES[:3])
    original, refused = Path.read_bytes, tmp_path / "data" / "0001.png"

    def read_bytes(path: Path) -> bytes:
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    config = settings()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        bad = ImageModality().bad_rows(split, config)
        [keys] = ImageModality().keys(split, config)
    assert bad == {1: "it cannot be read: Permission denied"}
    assert len(set(keys.tolist())) == 3
    assert ImageModality().bad_rows(split, config) == {}


def test_a_missing_picture_is_remembered_as_missing_until_it_is_there(settings: Settings, tmp_path: Path) -> None:
    split, config = split_of_files(tmp_path / "data", PICTURES[:2]), settings()
    (tmp_path / "data" / "0001.png").unlink()
    for _ in range(2):
        assert ImageModality().bad_rows(split, config) == {1: "there is no such file"}
    (tmp_path / "data" / "0001.png").write_bytes(PICTURES[1])
    assert ImageModality().bad_rows(split, config) == {}
