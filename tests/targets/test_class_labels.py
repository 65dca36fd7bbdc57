"""Labels of every type become class numbers; other targets are refused with a message."""

from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import LabelEncoder

from hf_transfer.targets.class_labels import check_classes, read_labels
from hf_transfer.targets.target import LabelColumns
from tests.data.conftest import user_error_with

COLUMN = LabelColumns(("label",))


def table(values: list[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"label": feature})
    return datasets.Dataset.from_dict({"label": values}, features=features)


def numbered(**splits: list[int]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    return {name: np.asarray(values, dtype=np.int64) for name, values in splits.items()}


def test_a_class_label_column_keeps_its_own_names_and_numbers() -> None:
    feature = datasets.ClassLabel(names=["zebra", "ant", "unused"])
    names, numbers = read_labels({"train": table([1, 0, 1], feature), "test": table([0], feature)}, COLUMN)
    assert names == ["zebra", "ant", "unused"]
    assert numbers["train"].tolist() == [1, 0, 1]
    assert numbers["test"].tolist() == [0]
    assert numbers["train"].dtype == np.int64


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["dog", "cat", "dog", "Ant"], ["Ant", "cat", "dog"]),
        ([10, 9, 10, 2], ["2", "9", "10"]),
        ([10.0, 9.0, 10.0, 2.0], ["2", "9", "10"]),
        ([True, False, True], ["False", "True"]),
        ([-1, 1, -1, 1], ["-1", "1"]),
    ],
    ids=["strings", "integers", "whole floats", "booleans", "minus one is a class beside others"],
)
def test_values_of_a_plain_column_are_numbered_in_sorted_order(values: list[Any], names: list[str]) -> None:
    """Integers sort as numbers: 9 before 10, which as strings would be the other way round."""
    read, numbers = read_labels({"train": table(values)}, COLUMN)
    assert read == names
    assert numbers["train"].tolist() == LabelEncoder().fit_transform(np.asarray(values)).tolist()


@given(
    train=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=30),
    data=st.data(),
)
def test_the_label_map_is_a_bijection_that_all_splits_share(train: list[str], data: st.DataObject) -> None:
    """Any text may be a label."""
    test = data.draw(st.lists(st.sampled_from(train), min_size=1, max_size=10))
    names, numbers = read_labels({"train": table(train), "test": table(test)}, COLUMN)
    assert names == sorted(set(train))
    assert [names[number] for number in numbers["train"]] == train
    assert [names[number] for number in numbers["test"]] == test


@pytest.mark.parametrize(
    "values",
    [["cat", None, "dog", None], ["cat", "", "dog", ""], [0.0, float("nan"), 1.0, float("nan")], [0, None, 1, None]],
    ids=["None among strings", "empty string", "NaN", "None among integers"],
)
def test_a_missing_label_is_refused_with_its_rows(values: list[Any]) -> None:
    """NaN is a number that equals nothing, itself included."""
    with user_error_with(
        expected="a label in every row of column 'label'",
        found="none in 2 rows of split 'train', first in rows [1, 3]",
        do="fill in or remove these rows",
    ):
        read_labels({"train": table(values)}, COLUMN)


def test_at_most_five_rows_without_a_label_are_listed() -> None:
    with user_error_with(
        expected="a label", found="none in 7 rows of split 'train', first in rows [0, 1, 2, 3, 4]", do=""
    ):
        read_labels({"train": table([*[None] * 7, "cat"])}, COLUMN)


def test_a_missing_label_in_an_evaluation_split_names_that_split() -> None:
    with user_error_with(
        expected="column 'label'", found="none in 1 rows of split 'test', first in rows [1]", do="fill"
    ):
        read_labels({"train": table(["a", "b"]), "test": table(["a", None])}, COLUMN)


@pytest.mark.parametrize("number", [-2, 2])
def test_a_class_number_out_of_range_is_refused_with_its_row(number: int) -> None:
    stored = table([0, 1, number, number], datasets.Value("int64"))
    # As in a file on disk: the feature is declared, its values are not checked.
    stored = datasets.Dataset(
        stored.data.table.replace_schema_metadata(None),
        info=datasets.DatasetInfo(
            features=datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])}),
        ),
    )
    with user_error_with(
        expected="class numbers from 0 to 1 in column 'label'",
        found=f"{number} in row 2 of split 'train' (2 such rows)",
        do="correct or remove these rows",
    ):
        read_labels({"train": stored}, COLUMN)


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([[0, 1], [1]], datasets.List(datasets.Value("int64"))),
        ([[0], [1]], datasets.List(datasets.ClassLabel(names=["a", "b"]))),
    ],
)
def test_lists_are_no_classes(values: list[Any], feature: Any) -> None:
    with user_error_with(
        expected="one class for each row in column 'label'",
        found="a list in each row",
        do="leave out --problem_type or name another",
    ):
        read_labels({"train": table(values, feature)}, COLUMN)


def test_several_columns_are_no_classes() -> None:
    with user_error_with(
        expected="one class for each row in columns 'a', 'b'", found="several columns", do="leave out --problem_type"
    ):
        read_labels({"train": table([0, 1])}, LabelColumns(("a", "b")))


@pytest.mark.parametrize(
    ("values", "feature", "words"),
    [
        ([{"a": 1}, {"a": 0}], {"a": datasets.Value("int64")}, "a column of type dict"),
        ([b"a", b"b"], datasets.Value("binary"), "bytes"),
        ([None, None], datasets.Value("timestamp[s]"), "dates"),
    ],
)
def test_columns_of_which_nothing_can_be_predicted_are_refused(values: list[Any], feature: Any, words: str) -> None:
    with user_error_with(
        expected="classes, labels or numbers in column 'label'",
        found=f"{words}, which cannot be predicted",
        do="name another column in --label_column_name",
    ):
        read_labels({"train": table(values, feature)}, COLUMN)


def test_fractions_are_classes_if_the_settings_say_so() -> None:
    names, numbers = read_labels({"train": table([0.5, 2.5, 0.5])}, COLUMN)
    assert (names, numbers["train"].tolist()) == (["0.5", "2.5"], [0, 1, 0])


def test_an_image_column_as_label_is_refused_by_its_type() -> None:
    with user_error_with(
        expected="classes, labels or numbers", found="a column of type Image", do="--label_column_name"
    ):
        read_labels({"train": table([None, None], datasets.Image())}, COLUMN)


def test_a_label_that_only_evaluation_has_is_refused_by_name() -> None:
    """Each name once, in order, although the rows repeat them."""
    with user_error_with(
        expected="in column 'label' of split 'test' only classes that training has (cat, dog)",
        found="'bird' in 1 rows, first in row 2 of split 'test'; 'eel' in 2 rows, first in row 0 of split 'test'",
        do="add training samples with these labels, or rename or remove them",
    ):
        read_labels({"train": table(["cat", "dog"]), "test": table(["eel", "cat", "bird", "eel"])}, COLUMN)


def test_an_unknown_fraction_in_evaluation_is_shown_as_it_is() -> None:
    """0.5 must not be shown as 0, which training has, and infinity is no whole number."""
    with user_error_with(expected="only classes that training has (0, 1)", found="'0.5' in 1 rows", do="remove"):
        read_labels({"train": table([0.0, 1.0]), "test": table([0.5, float("inf")])}, COLUMN)


def test_one_class_only_is_refused_by_name() -> None:
    """A class that is declared but has no row does not count."""
    with user_error_with(
        expected="at least 2 classes to tell apart", found="only 1 class, 'cat', in 3 rows", do="--label_column_name"
    ):
        check_classes(["cat", "dog"], numbered(train=[0, 0, 0]), splits_to_cut=0)


def test_a_training_split_without_rows_is_refused() -> None:
    with user_error_with(expected="at least 2 classes", found="no rows", do="add samples"):
        check_classes(["cat", "dog"], numbered(train=[]), splits_to_cut=0)


@pytest.mark.parametrize(("splits_to_cut", "needed"), [(0, 2), (1, 2), (2, 3)])
def test_a_class_needs_a_sample_for_training_and_for_each_split_that_is_cut(splits_to_cut: int, needed: int) -> None:
    """Two training samples are the least in any case."""
    enough = [0] * needed + [1] * needed
    check_classes(["cat", "dog"], numbered(train=enough), splits_to_cut=splits_to_cut)
    with user_error_with(
        expected=f"at least {needed} training samples of each class",
        found=f"too few of 'dog' ({needed - 1})",
        do="bring your own validation and test splits",
    ):
        check_classes(["cat", "dog"], numbered(train=enough[:-1]), splits_to_cut=splits_to_cut)


def test_a_class_label_name_that_no_row_has_is_allowed_in_training_alone() -> None:
    check_classes(["cat", "dog", "unused"], numbered(train=[0, 0, 1, 1], test=[0, 1]), splits_to_cut=0)


def test_a_declared_class_that_only_evaluation_has_is_refused_by_name() -> None:
    """A `ClassLabel` declares names that training may lack."""
    feature = datasets.ClassLabel(names=["cat", "dog", "bird"])
    with user_error_with(
        expected="in column 'label' of split 'validation' only classes that training has (cat, dog)",
        found="'bird' in 1 rows, first in row 0 of split 'validation'",
        do="add training samples with these labels",
    ):
        read_labels({"train": table([0, 0, 1, 1], feature), "validation": table([2, 0], feature)}, COLUMN)


def test_a_long_list_of_classes_is_shortened_with_its_rest_counted() -> None:
    names = [f"c{number}" for number in range(9)]
    with user_error_with(expected="", found="'c2' (1), 'c3' (1), 'c4' (1), 'c5' (1), 'c6' (1) and 2 more", do=""):
        check_classes(names, numbered(train=[0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]), splits_to_cut=0)


def named(*names: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=list(names))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (table([0, 1, 2], named("x", "y", "z")), table([0, 1], named("z", "y")), ["z", "y"]),
        (table([1, 0, 1], named("no", "yes")), table([0, 1], named("yes", "no")), ["yes", "no"]),
        (table([0, 1], named("red", "blue")), table([2, 0], named("blue", "green", "red")), ["red", "blue"]),
        (table([0, 1], named("red", "blue")), table(["blue", "red"]), ["blue", "red"]),
        (table(["1", "10", "2"]), table([10, 2]), ["10", "2"]),
        (table([1.0, 2.0]), table([1, 0], named("2", "1")), ["1", "2"]),
    ],
    ids=["a class less", "another order", "a class more, of no row", "names", "texts and numbers", "floats and names"],
)
def test_classes_of_splits_with_names_of_their_own_are_matched_by_name(
    train: datasets.Dataset, test: datasets.Dataset, expected: list[str]
) -> None:
    names, numbers = read_labels({"train": train, "test": test}, COLUMN)
    assert [names[number] for number in numbers["test"]] == expected


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_only_an_evaluation_split_names_is_refused_with_its_row(split: str) -> None:
    data = {"train": table([0, 1], named("b", "c")), split: table([1, 2, 0, 0], named("a", "b", "c"))}
    with user_error_with(
        expected=f"in column 'label' of split '{split}' only classes that training has (b, c)",
        found=f"'a' in 2 rows, first in row 2 of split '{split}'",
        do="add training samples with these labels, or rename or remove them",
    ):
        read_labels(data, COLUMN)


def test_a_similar_name_that_training_has_is_named_beside_an_unknown_one() -> None:
    with user_error_with(expected="", found="'Dog ' in 1 rows, first in row 1 of split 'test', and 'dog' is", do=""):
        read_labels({"train": table(["cat", "dog"]), "test": table(["cat", "Dog "])}, COLUMN)


@pytest.mark.parametrize(
    "data",
    [
        {"test": table(["dog", "cat"])},
        {"test": table([1, 2], named("owl", "dog", "cat"))},
        {"validation": table(["owl"]), "test": table([0, 1], named("dog", "cat"))},
    ],
)
def test_with_a_finished_model_the_names_are_those_of_the_model(data: dict[str, datasets.Dataset]) -> None:
    columns = COLUMN._replace(outputs=("dog", "cat", "owl"))
    names, numbers = read_labels(data, columns)
    assert names == ["dog", "cat", "owl"]
    assert numbers["test"].tolist() == [0, 1]


def test_a_row_is_called_by_its_file_and_line_where_they_are_known() -> None:
    columns = COLUMN._replace(row_names={"test": lambda row: f"test.csv, line {row + 2}"})
    with user_error_with(expected="", found="'eel' in 1 rows, first in test.csv, line 3", do=""):
        read_labels({"train": table(["cat", "dog"]), "test": table(["cat", "eel"])}, columns)
    with user_error_with(expected="", found="none in 1 rows of split 'test', first in test.csv, line 2", do=""):
        read_labels({"train": table(["cat", "dog"]), "test": table([None, "cat"])}, columns)
