"""`docs/settings.md` is generated from the settings themselves."""

import re
import subprocess
import sys

from docs.write_settings import documentation
from tests.conftest import REPOSITORY
from tests.settings.command_lines import CONFIGS

PAGE = REPOSITORY / "docs/settings.md"


def rows() -> list[list[str]]:
    """The cells of each line of the tables that describes a setting."""
    lines = [line for line in documentation().splitlines() if line.startswith("| `--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_is_what_the_settings_say() -> None:
    """If this fails: python docs/write_settings.py > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == documentation()


def test_the_command_prints_the_page() -> None:
    """In a process of its own: settings that tests define are not on the page."""
    command = [sys.executable, "docs/write_settings.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == documentation()


def test_every_setting_of_every_recipe_has_one_line() -> None:
    on_page = {(row[0], recipe) for row in rows() for recipe in row[3].split(", ")}
    expected = {(f"`--{name}`", config.recipe) for config in CONFIGS for name in config.settings()}
    assert on_page == expected
    assert sum(len(row[3].split(", ")) for row in rows()) == len(expected)


def test_a_line_has_default_values_recipes_effect_needs_and_meaning() -> None:
    assert ["`--num_train_epochs`", "`6`", "a whole number of at least 1", "text", "result",
            "a strategy that trains step by step", "Passes over the training split."] in rows()  # fmt: skip
    by_name = {row[0]: row for row in rows()}
    assert by_name["`--output_dir`"][1] == "required"
    assert by_name["`--hub_private_repo`"][1] == "`true`"
    assert by_name["`--report_to`"][1:3] == ["`none`", "a list of texts"]
    assert by_name["`--augmentation`"][2] == "`none`, `light`, `standard`, `trivial`"
    assert by_name["`--horizontal_flip`"][5] == "training; augmented training images"
    assert by_name["`--on_bad_sample`"][6].endswith("(up to 1 % of the rows).")
    assert {len(row) for row in rows()} == {7}


def test_topics_are_the_headings() -> None:
    headings = re.findall(r"^## (.+)$", documentation(), re.MULTILINE)
    assert headings == [
        "Model",
        "Data",
        "Strategy",
        "Training",
        "Store",
        "Checkpoints",
        "Output",
        "Image",
        "Text",
        "Fusion",
    ]
