"""The program in a card sees pictures as training did."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_transfer.data.pictures import decode
from hf_transfer.evaluation.templates import render
from hf_transfer.modalities.image import ImageModality
from tests.data.conftest import noise, raw_path
from tests.data.test_pictures import exif
from tests.evaluation.examples import results_of


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_program_of_an_adapter_turns_pictures_whose_other_exif_tags_are_damaged(
    orientation: int, tmp_path: Path
) -> None:
    """As training does; a resolution that is text is what broken software writes."""
    program = render(
        "hub/usage.py.jinja", modality=ImageModality(), repository="alice/pets", pairs=False, is_adapter=True,
        needs_timm=False, code_files=[], results=results_of(),
    )  # fmt: skip
    lines = [line for line in program.splitlines() if re.search(r"PIL|picture(\.| =)|^turn", line)]
    turned, damaged = (0x0112, 3, 1, struct.pack("<HH", orientation, 0)), (0x011A, 2, 2, b"ab")
    path = tmp_path / "picture.png"
    Image.fromarray(noise(12, 20, 3)).save(path, format="JPEG", exif=exif(turned, damaged))
    shown = "print(picture.mode, *picture.size, picture.tobytes().hex())"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, shown])], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = decode(raw_path(path))
    assert done.stdout.split() == [expected.mode, *map(str, expected.size), expected.tobytes().hex()]
