"""The tool behind `make test-mutations`, on a toy repository, and the mutations that our own tests name."""

from pathlib import Path

import pytest

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
