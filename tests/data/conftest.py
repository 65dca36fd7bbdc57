"""Fixtures of the data room: PNG files written by hand, settings, tables of pictures, texts or both, a recipe."""

import csv
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from hf_transfer.errors import UserError
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import MultimodalConfig, TextConfig, VisionConfig
from tests.conftest import Finished, exit_code, load_recipe

Pixels = npt.NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Random 8-bit values."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def same(first: Any, second: Any) -> bool:
    """Equal pixels and shapes, of pictures or arrays."""
    return np.array_equal(np.asarray(first), np.asarray(second))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


def png_by_hand(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: Sequence[bytes] = ()) -> bytes:
    """A PNG file written chunk by chunk, so that its header may lie about what follows."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def raw_bytes(data: bytes) -> dict[str, Any]:
    """As `datasets` holds an image that is embedded."""
    return {"bytes": data, "path": None}


def raw_path(path: Path) -> dict[str, Any]:
    """As `datasets` holds an image that lies in a file."""
    return {"bytes": None, "path": str(path)}


@contextmanager
def user_error_with(*, expected: str, found: str, do: str) -> Iterator[None]:
    """The block must raise a `UserError` whose three parts contain these words."""
    with pytest.raises(UserError) as caught:
        yield
    parts = re.fullmatch(r"Expected: (.+)\nFound:    (.+)\nDo this:  (.+)", str(caught.value), re.DOTALL)
    assert parts is not None, str(caught.value)
    for wanted, part in zip((expected, found, do), parts.groups(), strict=True):
        assert wanted in part, f"{wanted!r} is not in {part!r}"


class Settings(Protocol):
    """Makes settings of a vision run."""

    def __call__(self, **settings: Any) -> VisionConfig: ...


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """`settings(dataset_name=..., ...)`; what is remembered is remembered for this test alone."""

    def make(**chosen: Any) -> VisionConfig:
        defaults: dict[str, Any] = {
            "model_name_or_path": "sample:vit-glyphs",
            "dataset_name": "sample:digits",
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
        }
        return VisionConfig.of(**(defaults | chosen))

    return make


@pytest.fixture
def picture_table() -> Callable[..., datasets.Dataset]:
    """A table with embedded pictures, all different: `picture_table(labels, feature)`."""

    def make(
        labels: Sequence[Any], feature: Any = None, *, seed: int = 0, column: str = "image", label_column: str = "label"
    ) -> datasets.Dataset:
        label_feature = datasets.ClassLabel(names=["cat", "dog"]) if feature is None else feature
        pictures = [encoded(Image.fromarray(picture)) for picture in noise(len(labels), 8, 8, 3, seed=seed)]
        return datasets.Dataset.from_dict(
            {column: [raw_bytes(picture) for picture in pictures], label_column: list(labels)},
            features=datasets.Features({column: datasets.Image(), label_column: label_feature}),
        )

    return make


class TextSettings(Protocol):
    """Makes settings of a text run."""

    def __call__(self, **settings: Any) -> TextConfig: ...


@pytest.fixture
def text_settings(tmp_path: Path) -> TextSettings:
    """`text_settings(dataset_name=..., ...)`."""

    def make(**chosen: Any) -> TextConfig:
        defaults: dict[str, Any] = {
            "model_name_or_path": "sample:minilm",
            "dataset_name": "sample:intents",
            "output_dir": str(tmp_path / "out"),
        }
        return TextConfig.of(**(defaults | chosen))

    return make


class PairSettings(Protocol):
    """Makes settings of a run on images and texts."""

    def __call__(self, **settings: Any) -> MultimodalConfig: ...


@pytest.fixture
def pair_settings(tmp_path: Path) -> PairSettings:
    """`pair_settings(dataset_name=..., ...)`; what is remembered is remembered for this test alone."""

    def make(**chosen: Any) -> MultimodalConfig:
        defaults: dict[str, Any] = {
            "image_model_name_or_path": "sample:vit-glyphs",
            "text_model_name_or_path": "sample:minilm",
            "dataset_name": "sample:glyph-names",
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
        }
        return MultimodalConfig.of(**(defaults | chosen))

    return make


def pair_rows(count: int = 24, *, name: str = "{}.png", column: str = "file_name") -> list[dict[str, Any]]:
    """Rows that name a picture each, with a text and a label of two; all differ."""
    return [
        {column: name.format(number), "text": f"word{number} and more", "label": "ab"[number % 2]}
        for number in range(count)
    ]


def write_pictures(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, column: str = "file_name", seed: int = 0
) -> Path:
    """The pictures that rows name, all different, below a folder."""
    for row, pixels in zip(rows, noise(len(rows), 8, 8, 3, seed=seed), strict=True):
        if row[column]:
            (folder / row[column]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / row[column])
    return folder


def text_rows(count: int = 40, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of made-up words, the first of which tells the label; all texts differ."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = [f"word{generator.integers(10, 50)}" for _ in range(generator.integers(1, 9))]
        rows.append(
            {"text": " ".join([f"word{5 + number % 2}", *words, f"n{seed}x{number}"]), "label": "ab"[number % 2]}
        )
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Path:
    """A table in the format that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        content = "\n".join(lines) + "\n" if path.suffix == ".jsonl" else f"[{', '.join(lines)}]"
        path.write_text(content, encoding=encoding)
    return path


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Finished]:
    """`recipes/text.py` with flags, in this process: `text(dataset_name=..., ...)` -> `Finished`."""

    def recipe(*flags: str, **settings: object) -> Finished:
        return run_text(capsys, {"output_dir": tmp_path / "out", "num_train_epochs": 1} | settings, *flags)

    return recipe


def run_text(capsys: pytest.CaptureFixture[str], settings: Mapping[str, object], *flags: str) -> Finished:
    """The text recipe in this process; the exit code is 0, or that of `SystemExit`."""
    code = exit_code(
        lambda: run_recipe(
            load_recipe("text").main, TextConfig, [*(f"--{name}={value}" for name, value in settings.items()), *flags]
        )
    )
    captured = capsys.readouterr()
    return Finished(code, captured.out, captured.err)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails."""

    def weights(*_: object, **__: object) -> NoReturn:
        raise AssertionError("model weights were loaded before the data were checked")

    monkeypatch.setattr(Checkpoint, "classifier", weights)
    monkeypatch.setattr(Checkpoint, "finished_classifier", weights)


def assert_refused(finished: Finished, expected: str, found: str, do: str) -> None:
    """The recipe has ended with code 2 and the three parts of a message."""
    assert finished.code == 2, finished.err
    assert "Traceback" not in finished.out + finished.err
    parts = re.search(r"\nerror:\nExpected: (.+)\nFound:    (.+)\nDo this:  (.+)\n", finished.err, re.DOTALL)
    assert parts is not None, finished.err
    for wanted, part in zip((expected, found, do), parts.groups(), strict=True):
        assert wanted in part
