"""The table of docs/models.md says what can be done with each family of backbones."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.families.checkpoints import FAMILIES, Family
from tests.families.table import head, notes, row, tried

PAGE = (REPOSITORY / "docs/models.md").read_text(encoding="utf-8").splitlines()


def assert_as_on_page(family: Family, folder: Path) -> None:
    """Try a family, and compare its line and its notes with the page."""
    answers = tried(family, folder)
    assert row(family, answers) in PAGE
    stated = [line for line in PAGE if line.startswith(f"- {family.title}, ")]
    assert stated == list(notes(family, answers))


def test_the_table_has_a_line_for_each_family_and_no_other() -> None:
    first = PAGE.index(next(head()))
    titles = []
    for line in PAGE[first + 2 :]:
        if not line.startswith("|"):
            break
        titles.append(line.split("|")[1].strip())
    assert titles == [family.title for family in FAMILIES]


@pytest.mark.slow
@pytest.mark.parametrize("family", [one for one in FAMILIES if not one.is_timm], ids=lambda family: family.title)
def test_the_line_of_a_family_is_what_was_tried(family: Family, tmp_path: Path) -> None:
    assert_as_on_page(family, tmp_path)
