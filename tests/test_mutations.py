"""The tools that break the library to see tests fail, on a toy repository, and what our own tests name."""

from pathlib import Path

import pytest

from tests import mutation_score
from tests.conftest import REPOSITORY
from tests.mutations import collect, main, named

TOY_TEST = '''from hf_transfer.toy import double


def test_that_guards() -> None:
    """It fails.

    {word}: hf_transfer/toy.py: "2 * x" -> "3 * x"
    """
    assert double(2) == 4


def test_that_guards_nothing() -> None:
    """It cannot fail.

    {word}: hf_transfer/toy.py: "2 * x" -> "4 * x"
    """
    assert double(0) == 0


def test_whose_mutation_breaks_the_file() -> None:
    """The file cannot be read any more.

    {word}: hf_transfer/toy.py: "2 * x" -> "2 * ("
    """
    assert double(2) == 4
'''


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for folder in ("hf_transfer", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "hf_transfer/toy.py").write_text("def double(x: int) -> int:\n    return 2 * x\n")
    (tmp_path / "tests/test_toy.py").write_text(TOY_TEST.format(word="Mutation"))
    return tmp_path


def test_a_survivor_and_a_broken_file_are_reported_and_a_killed_mutation_too(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--jobs=2"], root=toy) == 1
    first, killed, survived, broken, last = capsys.readouterr().out.splitlines()
    assert first == "3 mutations, 3 of them chosen"
    assert killed.startswith("killed   tests/test_toy.py::test_that_guards  [hf_transfer/toy.py: '2 * x' -> '3 * x']")
    assert survived.startswith("SURVIVED tests/test_toy.py::test_that_guards_nothing")
    assert "the test passed all the same" in survived
    assert broken.startswith("SURVIVED tests/test_toy.py::test_whose_mutation_breaks_the_file")
    assert "instead of running the test" in broken
    assert last == "1 killed, 2 survived"
    assert (toy / "hf_transfer/toy.py").read_text().endswith("2 * x\n")


def test_only_some_can_be_chosen_and_none_is_a_failure(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only=that_guards", "--only=test_that_nobody_wrote"], root=toy) == 1
    assert "3 mutations, 0 of them chosen" in capsys.readouterr().out
    lines = (toy / "tests/test_toy.py").read_text().replace("nothing", "less")
    (toy / "tests/test_toy.py").write_text(lines.replace('2 * x" -> "4', '2 * x" -> "2'))
    assert [mutation.new for mutation in collect(toy)] == ["3 * x", "2 * x", "2 * ("]


def test_a_text_that_does_not_stand_exactly_once_is_refused(toy: Path) -> None:
    (toy / "hf_transfer/toy.py").write_text("def double(x: int) -> int:\n    return 2 * x or 2 * x\n")
    with pytest.raises(ValueError, match=r"test_that_guards: '2 \* x' stands 2 times in hf_transfer/toy.py, not once"):
        collect(toy)


def test_a_mutation_of_the_wrong_form_is_refused(toy: Path) -> None:
    text = (toy / "tests/test_toy.py").read_text().replace('"3 * x"', "3 * x")
    (toy / "tests/test_toy.py").write_text(text)
    with pytest.raises(ValueError, match="test_that_guards: not of the form"):
        collect(toy)


def test_every_mutation_that_our_tests_name_can_be_applied() -> None:
    mutations = collect(REPOSITORY)
    assert len(mutations) == named(REPOSITORY) >= 30
    assert all(mutation.old != mutation.new for mutation in mutations)


def test_every_change_of_a_module_is_a_mutant_of_its_own() -> None:
    source = """
def sign(number: int | None) -> int:
    if number is None or number < 1:
        raise ValueError("none")
    print(number + 2)
    return 3
"""
    found = mutation_score.mutants_of("toy.py", source, ())
    assert sorted(mutant.change for mutant in found) == [
        "1 -> 2", "2 -> 3", "3 -> 4", "Add -> Sub", "Is -> IsNot", "Lt -> LtE", "Or -> And", "returns None",
        "the other branch", "without `print(number + 2)`", "without `raise ValueError('none')`",
    ]  # fmt: skip
    assert len({mutant.source for mutant in found}) == len(found)
    (removed,) = (mutant for mutant in found if mutant.change.startswith("without `raise"))
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
