"""Lists of names for people, and names that are easily taken for each other."""

import pytest

from hf_transfer.targets.class_names import notes_on_similar_names, shown_names, similar_names
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets


@pytest.mark.parametrize("count", [1, 19, 20])
def test_up_to_twenty_names_are_shown_all(count: int) -> None:
    names = [f"class{number}" for number in range(count)]
    assert shown_names(names) == ", ".join(names)


@pytest.mark.parametrize(("count", "more"), [(21, "1"), (37, "17"), (1_520, "1,500")])
def test_of_more_than_twenty_names_the_rest_is_counted(count: int, more: str) -> None:
    names = [f"class{number}" for number in range(count)]
    assert shown_names(names) == f"{', '.join(names[:20])} and {more} more"


@pytest.mark.parametrize(
    ("name", "shown"),
    [(" cat", "' cat'"), ("", "''"), ("Paris, France", "'Paris, France'"), ("a\nb", r"'a\nb'"), ("Katze", "Katze")],
)
def test_a_name_is_quoted_where_it_could_be_misread(name: str, shown: str) -> None:
    assert shown_names([name]) == shown


def test_a_long_name_is_shortened() -> None:
    assert shown_names(["x" * 500]) == "x" * 57 + "..."


@pytest.mark.parametrize("other", ["CAT", " cat", "Cat\t"])
def test_names_that_differ_in_case_or_surrounding_spaces_are_similar(other: str) -> None:
    assert similar_names("cat", ["dog", other, "cat", "c at"]) == [other]


@pytest.mark.parametrize(("first", "second"), [("spam", "Spam"), ("ham ", "ham"), ("Straße", "STRASSE")])
def test_similar_names_are_reported_with_their_counts(first: str, second: str) -> None:
    assert notes_on_similar_names({first: 1_200, "other": 5, second: 3}, "classes") == [
        f"Warning: classes that differ only in case or surrounding spaces: {first!r} (1,200 samples) and "
        f"{second!r} (3 samples). They are kept apart."
    ]


def test_classes_and_labels_report_similar_names() -> None:
    import numpy as np

    (note, *_) = Classes(("Cat", "cat")).notes({"train": np.array([0, 0, 1]), "test": np.array([1])})
    assert "'Cat' (2 samples) and 'cat' (2 samples)" in note
    cells = np.asarray([[1, 1], [0, 1]], np.float32)
    (note, *_) = LabelSets(("Cat", "cat")).notes({"train": cells})
    assert "labels that differ only in case" in note
    assert "'Cat' (1 samples) and 'cat' (2 samples)" in note
