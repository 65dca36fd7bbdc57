"""A picture is decoded once in a run, and in no later one: counted in all processes, at Pillow's own `load`."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from hf_transfer.evaluation.results import Results
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import MultimodalConfig
from tests.conftest import Recipe, load_recipe
from tests.data.conftest import write_table
from tests.data.deep_pictures import grey, png16
from tests.tiny_text_models import save_text_checkpoint

Decoded = Callable[[], Counter[str]]
CLASSES, OF_EACH = ("cat", "dog"), 12


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """How often each picture was decoded since the last call, by any process; each has a comment with its name."""
    log = tmp_path / "decoded.log"
    log.touch()
    original = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> Any:
        if self.tile and (name := self.info.get("comment") or self.info.get("Comment")):
            with log.open("a") as file:
                file.write(f"{name if isinstance(name, str) else name.decode()}\n")
        return original(self)

    def since_last_call() -> Counter[str]:
        names = Counter(log.read_text().split())
        log.write_text("")
        return names

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return since_last_call


def save(path: Path, seed: int, number: int) -> str:
    """A picture whose colour tells its class; every other one is a JPEG of many pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 100, (90, 120, 3))
    pixels[..., number] += 120
    picture, name = Image.fromarray(pixels.astype(np.uint8)), f"picture-{seed}"
    if seed % 2:
        picture.save(path.with_suffix(".jpg"), comment=name)
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", name)
        picture.save(path.with_suffix(".png"), pnginfo=text)
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [
        save(tmp_path / f"pictures/{label}/{position}", seed=OF_EACH * number + position, number=number)
        for number, label in enumerate(CLASSES)
        for position in range(OF_EACH)
    ]
    assert len(set(names)) == ALL
    return tmp_path / "pictures"


ALL = len(CLASSES) * OF_EACH
STAGES: dict[str, object] = {"strategy": "lp_ft", "num_train_epochs": 3, "max_train_samples_per_class": None}


@pytest.mark.parametrize("verify_samples", [10_000, 5])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_picture_is_decoded_once_in_a_run_and_never_in_the_next(
    workers: int, verify_samples: int, vision: Recipe, folder: Path, decoded: Decoded, tmp_path: Path
) -> None:
    """In the checks, all stages and epochs, validation and evaluation, also if most of it is left to the loaders."""
    settings = STAGES | {"dataset_name": folder, "verify_samples": verify_samples, "dataloader_num_workers": workers}
    first = vision("--overwrite_output_dir", **settings)
    assert first.code == 0, first.err
    counts = decoded()
    assert (len(counts), set(counts.values())) == (ALL, {1})
    results = Results.read(tmp_path / "out").metrics
    weights = (tmp_path / "out/model/model.safetensors").read_bytes()
    second = vision("--overwrite_output_dir", **settings)
    assert second.code == 0, second.err
    assert decoded() == {}
    assert Results.read(tmp_path / "out").metrics == results
    assert (tmp_path / "out/model/model.safetensors").read_bytes() == weights


def test_another_strategy_and_another_seed_decode_nothing_again(vision: Recipe, folder: Path, decoded: Decoded) -> None:
    settings = {"dataset_name": folder, "max_train_samples_per_class": None}
    assert vision(**settings).code == 0
    assert sum(decoded().values()) == ALL
    other = settings | {"output_dir": folder.parent / "two", "strategy": "linear_probe", "seed": 7, "split_seed": 3}
    finished = vision(**other)
    assert finished.code == 0, finished.err
    assert decoded() == {}


def test_only_what_has_changed_is_decoded_again(vision: Recipe, folder: Path, decoded: Decoded) -> None:
    """A picture that is new, and one with other pixels; not one that was touched, moved or copied."""
    settings = {"dataset_name": folder, "max_train_samples_per_class": None}
    assert vision(**settings).code == 0
    decoded()
    changed = save(folder / "cat" / "1", seed=101, number=0)
    new = save(folder / "dog" / "99", seed=102, number=1)
    os.utime(folder / "cat" / "2.png", ns=(1, 1))
    (folder / "cat" / "4.png").rename(folder / "cat" / "renamed.png")
    shutil.copy(folder / "dog" / "0.png", folder / "dog" / "copied.png")
    finished = vision("--overwrite_output_dir", **settings)
    assert finished.code == 0, finished.err
    assert decoded() == {changed: 1, new: 1}


def test_without_a_store_on_disk_later_runs_decode_and_give_the_same(
    vision: Recipe, folder: Path, decoded: Decoded, tmp_path: Path
) -> None:
    settings = STAGES | {"dataset_name": folder}
    assert vision(**settings).code == 0
    decoded()
    without = {"cache_pixels_gb": 0, "cache_dir": tmp_path / "other", "output_dir": tmp_path / "without"}
    assert vision(**settings | without).code == 0
    assert set(decoded().values()) == {2}
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("out", "without")]
    assert weights[0] == weights[1]


def test_pictures_that_are_embedded_in_a_table_are_decoded_once(
    vision: Recipe, folder: Path, decoded: Decoded, tmp_path: Path
) -> None:
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": None}, "label": path.parent.name}
        for path in sorted(folder.glob("*/*"))
    ]
    table = write_table(tmp_path / "table.parquet", rows)
    for expected in (ALL, 0):
        finished = vision("--overwrite_output_dir", **STAGES | {"dataset_name": table})
        assert finished.code == 0, finished.err
        assert sum(decoded().values()) == expected


def test_pictures_of_more_than_eight_bits_are_decoded_once_where_each_shows_what_is_white(
    vision: Recipe, decoded: Decoded, tmp_path: Path
) -> None:
    """A picture of 12 bits among others of 16 is decoded a second time, with their white."""
    counts: Counter[str] = Counter()
    for position in range(ALL):
        path = tmp_path / "deep" / CLASSES[position % 2] / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png16(grey((30, 40), 4000 if position == 8 else 60000, seed=position)))
    original = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> Any:
        if self.tile:
            counts[str(self.size)] += 1
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", load)
        for expected in (ALL + 1, 0):
            counts.clear()
            finished = vision("--overwrite_output_dir", **STAGES | {"dataset_name": tmp_path / "deep"})
            assert finished.code == 0, finished.err
            assert sum(counts.values()) == expected


def test_images_with_texts_are_decoded_once(folder: Path, decoded: Decoded, tmp_path: Path) -> None:
    rows = [
        {"image": str(path), "text": f"word{number}", "label": path.parent.name}
        for number, path in enumerate(sorted(folder.glob("*/*")))
    ]
    table, text_model = write_table(folder / "pairs.csv", rows), save_text_checkpoint(tmp_path / "bert")
    for expected in (ALL, 0):
        run_recipe(
            load_recipe("multimodal").main, MultimodalConfig,
            [
                "--image_model_name_or_path=sample:vit-glyphs", f"--text_model_name_or_path={text_model}",
                f"--dataset_name={table}", f"--output_dir={tmp_path / 'out'}", f"--cache_dir={tmp_path / 'cache'}",
                "--strategy=linear_probe", "--num_train_epochs=2", "--overwrite_output_dir",
            ],
        )  # fmt: skip
        assert sum(decoded().values()) == expected


def test_the_bytes_of_unchanged_files_are_not_read_again(
    vision: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for their pixels, the cut of the splits, or the search for copies; only their headers may be."""
    settings = STAGES | {"dataset_name": folder}
    assert vision(**settings).code == 0
    original = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        assert folder not in self.parents, f"{self} was read"
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    second = vision("--overwrite_output_dir", **settings)
    assert second.code == 0, second.err


def test_a_picture_that_is_damaged_stops_the_run_before_training_with_its_name(
    vision: Recipe, folder: Path, decoded: Decoded
) -> None:
    path = folder / "cat" / "3.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        finished = vision(dataset_name=folder)
        assert finished.code == 2
        assert f"{path} (damaged" in finished.err
    assert max(decoded().values()) == 1
    path.write_bytes(content)
    finished = vision(dataset_name=folder, max_train_samples_per_class=None)
    assert finished.code == 0, finished.err
    assert decoded() == {"picture-3": 1}
