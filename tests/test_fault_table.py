"""The tables of faults and of hostile input name tests that exist."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY

ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


@pytest.mark.parametrize(("name", "count"), [("faults", 28), ("security", 32)])
def test_every_row_of_a_table_names_tests_that_exist(name: str, count: int) -> None:
    table = (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if ROW.match(line)]
    assert [int(ROW.match(row).group(1)) for row in rows] == list(range(1, count + 1))  # type: ignore[union-attr]
    missing = []
    for row in rows:
        references = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert references, row
        for file, test in references:
            path = REPOSITORY / file
            tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
            if test not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
                missing.append(f"{file}::{test}")
    assert missing == []
