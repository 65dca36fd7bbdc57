"""The lines of docs/models.md about models of timm say what can be done with them."""

from pathlib import Path

import pytest

from tests.families.checkpoints import FAMILIES, Family
from tests.families.test_family_table import assert_as_on_page


@pytest.mark.slow
@pytest.mark.parametrize("family", [one for one in FAMILIES if one.is_timm], ids=lambda family: family.title)
def test_the_line_of_a_family_of_timm_is_what_was_tried(family: Family, tmp_path: Path) -> None:
    assert_as_on_page(family, tmp_path)
