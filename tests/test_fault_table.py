"""The tables of faults and of hostile input name tests that exist."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY

ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


@pytest.mark.parametrize(("name", "numbers"), [("faults", set(range(1, 28))), ("security", set(range(1, 31)))])
def test_every_row_of_a_table_is_shown_by_tests_that_there_are(name: str, numbers: set[int]) -> None:
    table = (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if ROW.match(line)]
    assert {int(number) for number in ROW.findall(table)} == numbers
    assert len(rows) == len(numbers)
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, test)
