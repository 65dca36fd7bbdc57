"""An error in one of two processes ends both, and is printed once."""

from pathlib import Path

import pytest
from PIL import Image

from tests.training.launched import Ended, torchrun, two_forks

MODEL = ("--model_name_or_path", "sample:vit-glyphs")
ORDER = """
import sys
from accelerate import Accelerator
from hf_transfer.errors import UserError
from hf_transfer.settings.parsing import exit_with
from hf_transfer.training.launching import main_process_first

accelerator, wrong = Accelerator(cpu=True), sys.argv[1]
try:
    with main_process_first(accelerator):
        print(f"process {accelerator.process_index} works", flush=True)
        if str(accelerator.process_index) == wrong:
            raise UserError(f"wrong in {wrong}")
    print(f"process {accelerator.process_index} goes on", flush=True)
except UserError as error:
    exit_with(error)
"""


def ended_with_one_error(ended: Ended, found: str) -> None:
    assert ended.returncode != 0
    assert ended.output.count("Do this:") == 1, ended.output
    assert found in ended.output
    assert "Traceback" not in ended.output


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "order.py"
    path.write_text(ORDER)
    return path


def test_the_main_process_comes_first_and_then_all_go_on(script: Path) -> None:
    ended = two_forks(script, "none")
    assert ended.returncode == 0, ended.output
    lines = ended.output.splitlines()
    assert [line for line in lines if line.endswith("works")] == ["process 0 works", "process 1 works"]
    assert sorted(line for line in lines if line.endswith("goes on")) == ["process 0 goes on", "process 1 goes on"]


@pytest.mark.parametrize("wrong", ["0", "1"])
def test_an_error_of_either_process_ends_both_and_is_printed_by_that_one(wrong: str, script: Path) -> None:
    ended = two_forks(script, wrong)
    assert ended.returncode != 0
    assert ended.output.count(f"wrong in {wrong}") == 1
    assert "goes on" not in ended.output
    assert "Traceback" not in ended.output
    assert ("process 1 works" in ended.output) == (wrong == "1")


def test_a_missing_data_set_is_reported_once(tmp_path: Path) -> None:
    missing = ("--dataset_name", str(tmp_path / "missing"), "--output_dir", str(tmp_path / "out"))
    ended_with_one_error(two_forks("recipes/vision.py", *missing, *MODEL), "no folder or file")


def test_a_folder_that_cannot_be_written_to_is_reported_once(tmp_path: Path) -> None:
    """It is found after data and model, by the main process alone."""
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in range(12):
            Image.new("RGB", (12, 12), (200 * number + shade, 0, 0)).save(tmp_path / "pictures" / name / f"{shade}.png")
    (tmp_path / "file").write_text("")
    ended = two_forks(
        "recipes/vision.py", "--dataset_name", str(tmp_path / "pictures"), *MODEL, "--cache_dir",
        str(tmp_path / "cache"), "--output_dir", str(tmp_path / "file/out"),
    )  # fmt: skip
    ended_with_one_error(ended, "Not a directory")


@pytest.mark.slow
def test_torchrun_shows_a_missing_column_and_the_code_of_a_user_s_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    ended = torchrun(
        "recipes/text.py", "--dataset_name", str(tmp_path / "rows.csv"), "--text_column_name", "words",
        "--model_name_or_path", "sample:none", "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert ended.output.count("no column 'words'") == 1
    assert "[rank1]: Traceback" not in ended.output
    assert "exitcode  : 2" in ended.output
