"""Exports of finished models, and answers of the program beside them where nothing of torch can be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.command_line import main
from hf_transfer.export.folder import export_model

MISSING = ("torch", "transformers", "hf_transfer")


def exported(model: Path | str, folder: Path) -> dict[str, Any]:
    """Export a model, and read what was compared."""
    export_model(str(model), folder)
    content: dict[str, Any] = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    return content


def served(folder: Path, *sample: str, scratch: Path) -> Any:
    """The answer of `serve.py`, in a process in which torch, transformers and hf_transfer cannot be imported."""
    blocked = scratch / "blocked"
    blocked.mkdir(exist_ok=True)
    for name in MISSING:
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is not installed here')\n")
    paths = os.pathsep.join([str(blocked), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, str(folder / "serve.py"), *sample], cwd=scratch, env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def predicted(model: Path | str, words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The answer of `hf-transfer predict` to one sample, without what says where the sample is."""
    capsys.readouterr()
    main(["predict", str(model), *words])
    (line,) = capsys.readouterr().out.splitlines()
    return {name: value for name, value in json.loads(line).items() if name not in ("path", "row", "text")}


def same_answers(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two answers have the same names in the same order, and the same numbers up to rounding."""
    if first.keys() != second.keys():
        return False
    for key, value in first.items():
        if isinstance(value, dict):
            if list(value) != list(second[key]) or value != {
                name: pytest.approx(number, rel=1e-4, abs=1e-5) for name, number in second[key].items()
            }:
                return False
        elif value != second[key]:
            return False
    return True
