"""`hf-transfer rank` in this process, with tiny models and texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_transfer import command_line
from tests.conftest import Finished
from tests.tiny_text_models import save_text_checkpoint

Rank = Callable[..., Finished]


@pytest.fixture
def rank_without_output(tmp_path: Path) -> Callable[..., int]:
    """`hf-transfer rank` with flags, in this process; its exit code."""

    def run(data: Path, *flags: str | Path) -> int:
        try:
            command_line.main(
                ["rank", "--dataset_name", str(data), "--cache_dir", str(tmp_path / "cache"), *map(str, flags)]
            )
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.fixture
def rank(rank_without_output: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Rank:
    """The same with a file for the ranking, and what it prints."""

    def run(data: Path, *flags: str | Path) -> Finished:
        code = rank_without_output(data, "--output", tmp_path / "ranking.json", *flags)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


def ranking(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    return content


def texts(folder: Path, rows: int = 60, *, name: str = "train.csv", seed: int = 0) -> Path:
    """A table of texts whose words tell three classes apart, not without error."""
    generator = np.random.default_rng(seed)
    lines = ["text,label"]
    for row in range(rows):
        label = row % 3
        words = [f"word{generator.integers(20 * label, 20 * label + 30) % 59}" for _ in range(6)]
        lines.append(f"{' '.join(words)},{'abc'[label]}")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two tiny text models of different architectures."""
    made = [save_text_checkpoint(tmp_path / name, name) for name in ("bert", "distilbert")]
    return made[0], made[1]
