"""The table of faults names tests that exist."""

import ast
import re

from tests.conftest import REPOSITORY

ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


def test_every_fault_of_the_table_is_shown_by_tests_that_there_are() -> None:
    """Mutation: docs/faults.md: "::test_one_class_only`" -> "::test_one_class`" """
    table = (REPOSITORY / "docs/faults.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if ROW.match(line)]
    assert {int(number) for number in ROW.findall(table)} == set(range(1, 28))
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, test)
