"""What can be done with each family of backbones, tried; the table of docs/models.md.

    python -m tests.families.table [--families NAME ...]

It prints the lines of the table and its notes. A test compares each line with the page. Where timm can be imported,
the families are those of timm, and elsewhere the others: beside timm there is torchvision, and with it pipelines of
transformers resize pictures a little differently.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hf_transfer.errors import UserError
from tests.families.abilities import ABILITIES, MERGED, YES, Trial
from tests.families.checkpoints import FAMILIES, Family

NO = "no"
WORDS = (YES, MERGED)


def tried(family: Family, folder: Path) -> dict[str, str]:
    """By ability the word of its cell, or what was expected of the family that it does not have.

    Args:
        family: the family.
        folder: an empty folder.
    """
    trial = Trial(family, folder)
    answers = {}
    for name, ability in ABILITIES.items():
        try:
            answers[name] = ability(trial)
        except UserError as error:
            expected = str(error).splitlines()[0].removeprefix("Expected: ").strip()
            answers[name] = expected.replace(str(trial.checkpoint), "the checkpoint")
    return answers


def row(family: Family, answers: Mapping[str, str]) -> str:
    """The line of a family."""
    cells = [answer if answer in WORDS else NO for answer in answers.values()]
    return f"| {family.title} | {family.recipe} | {' | '.join(cells)} |"


def notes(family: Family, answers: Mapping[str, str]) -> Iterator[str]:
    """A line for each ability that the family does not have: what it would need."""
    for name, answer in answers.items():
        if answer not in WORDS:
            yield f"- {family.title}, {name}: needs {answer}."


def head() -> Iterator[str]:
    """The two first lines of the table."""
    yield f"| family | recipe | {' | '.join(ABILITIES)} |"
    yield f"|---|---|{'---|' * len(ABILITIES)}"


def main(words: Sequence[str] | None = None) -> None:
    """Try the families, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_timm = find_spec("timm") is not None
    families = [family for family in FAMILIES if family.is_timm == has_timm]
    titles = [family.title for family in families]
    parser.add_argument("--families", nargs="+", default=titles, choices=titles, metavar="NAME")
    arguments = parser.parse_args(words)
    lines: list[str] = list(head())
    remarks: list[str] = []
    for family in families:
        if family.title in arguments.families:
            with tempfile.TemporaryDirectory() as folder:
                answers = tried(family, Path(folder))
            lines.append(row(family, answers))
            remarks += notes(family, answers)
    print("\n".join([*lines, "", *remarks]))


if __name__ == "__main__":
    main()
