"""Predictions for many pictures take no more memory than for few."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
