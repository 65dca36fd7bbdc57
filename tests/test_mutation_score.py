"""The tool that measures how many small changes the tests notice, on a toy repository."""

from pathlib import Path

import pytest

from tests import mutation_score

TOY_TEST = """from hf_transfer.toy import double


def test_that_guards_nothing() -> None:
    assert double(0) == 0
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for folder in ("hf_transfer", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "hf_transfer/toy.py").write_text("def double(x: int) -> int:\n    return 2 * x\n")
    (tmp_path / "tests/test_toy.py").write_text(TOY_TEST)
    return tmp_path


def test_every_change_of_a_module_is_a_mutant_of_its_own() -> None:
    source = """
def sign(number: int | None) -> int:
    if number is None or number < 1:
        raise ValueError("none")
    print(number + 2)
    return 3
"""
    mutants = mutation_score.mutants_of("toy.py", source, ())
    assert sorted(mutant.change for mutant in mutants) == [
        "1 -> 2", "2 -> 3", "3 -> 4", "Add -> Sub", "Is -> IsNot", "Lt -> LtE", "Or -> And", "returns None",
        "the other branch", "without `print(number + 2)`", "without `raise ValueError('none')`",
    ]  # fmt: skip
    assert len({mutant.source for mutant in mutants}) == len(mutants)
    (removed,) = (mutant for mutant in mutants if mutant.change.startswith("without `raise"))
    assert removed.source.splitlines()[2:4] == ["        pass", "    print(number + 2)"]
    assert removed.line == 3


def test_the_score_is_the_share_of_mutants_that_tests_notice(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thrice nothing is nothing too; a division by it, or no value, is not."""
    test = {"hf_transfer/toy.py": ("tests/test_toy.py::test_that_guards_nothing",)}
    assert mutation_score.main(["--at_least=0.6"], toy, test) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 of 3 mutants drawn with seed 0",
        "survived  hf_transfer/toy.py:2  2 -> 3",
        "   2 of    3  hf_transfer/toy.py",
        "66.7% of the mutants noticed",
    ]
    assert mutation_score.main(["--at_least=0.7"], toy, test) == 1


def test_a_score_needs_tests_that_pass(toy: Path) -> None:
    (toy / "tests/test_toy.py").write_text(
        "def test_that_fails() -> None:\n    raise AssertionError('it never passed')\n"
    )
    with pytest.raises(SystemExit, match=r"(?s)Expected: tests that pass without a change\..*it never passed"):
        mutation_score.main([], toy, {"hf_transfer/toy.py": ("tests/test_toy.py",)})
