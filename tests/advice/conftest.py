"""`hf-transfer rank` in this process, with tiny models and texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_transfer import command_line
from tests.conftest import Finished, exit_code
from tests.tiny_text_models import save_text_checkpoint

Rank = Callable[..., Finished]


@pytest.fixture
def rank_without_output(tmp_path: Path) -> Callable[..., int]:
    """`hf-transfer rank` with flags, in this process; its exit code."""

    def run(data: Path, *flags: str | Path) -> int:
        return exit_code(
            lambda: command_line.main(
                ["rank", "--dataset_name", str(data), "--cache_dir", str(tmp_path / "cache"), *map(str, flags)]
            )
        )

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


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two tiny text models of different architectures."""
    made = [save_text_checkpoint(tmp_path / name, name) for name in ("bert", "distilbert")]
    return made[0], made[1]
