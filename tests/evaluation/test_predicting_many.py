"""Predictions for many pictures take no more memory than for few, and none of it is asked for again and again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_transfer import host_memory
from hf_transfer.command_line import main
from hf_transfer.evaluation.predictor import Predictor
from tests.conftest import REPOSITORY

FEW, MANY = 64, 1_500
# Ends with the largest memory that the process has had, in kilobytes.
PREDICT = """
import resource, sys
from hf_transfer.command_line import main
main(["predict", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_many_large_pictures_are_predicted_in_the_memory_of_few(tmp_path: Path) -> None:
    """A batch of 32 of them would take 150 MB in full size."""
    picture = tmp_path / "one.png"
    Image.fromarray(np.full((1000, 1600, 3), 99, dtype=np.uint8)).save(picture)
    peaks = []
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            os.link(picture, folder / f"{number:05}.png")
        answers = tmp_path / f"{count}.jsonl"
        command = [sys.executable, "-c", PREDICT, "sample:vit-glyphs", str(folder), "--output", str(answers)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert len(answers.read_text().splitlines()) == count
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 20_000_000


def test_freed_memory_is_kept_while_predictions_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    @contextmanager
    def noted(*, scarce: bool) -> Iterator[None]:
        events.append(f"kept, scarce: {scarce}")
        yield
        events.append("returned")

    answers = Predictor.answers

    def watched(self: Predictor, *arguments: Any) -> Any:
        events.append("predicted")
        return answers(self, *arguments)

    monkeypatch.setattr(host_memory, "freed_memory_kept", noted)
    monkeypatch.setattr(Predictor, "answers", watched)
    Image.fromarray(np.full((40, 40, 3), 99, dtype=np.uint8)).save(tmp_path / "one.png")
    main(["predict", "sample:vit-glyphs", str(tmp_path / "one.png")])
    assert events == ["kept, scarce: False", "predicted", "returned"]
