"""Splits that are cut off training share no content and no group with it, and stay when data grow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from hf_transfer.data import verification
from hf_transfer.data.checked import load_splits
from hf_transfer.data.groups import units_of
from hf_transfer.data.pictures import content
from hf_transfer.data.splits import Splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig, VisionConfig
from tests.conftest import DRAWN_ONLY
from tests.data.conftest import (
    PairSettings,
    Settings,
    TextSettings,
    encoded,
    noise,
    pair_rows,
    raw_bytes,
    text_rows,
    user_error_with,
    write_pictures,
    write_table,
)

IN_MEMORY = "memory:0123456789abcdef"
# Which content a row has, and which group; rows with the same number are copies, or of one group.
ROWS = st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 15)), min_size=40, max_size=60)
PICTURES = [encoded(Image.fromarray(pixels)) for pixels in noise(41, 4, 4, 3)]
TEXTS = [f"text {number}" for number in range(41)]
COMMON = {"dataset_name": IN_MEMORY, "output_dir": "out", "label_column_name": "label"}
Kind = tuple[Any, RunConfig, Callable[[int], dict[str, Any]], dict[str, Any]]


def kind(name: str, cache: Path, group: str | None) -> Kind:
    """A modality, its settings, a sample of it by the number of its content, and its columns."""
    more: dict[str, Any] = {**COMMON, "group_column_name": group, "cache_dir": str(cache)}
    image, text = {"image": datasets.Image()}, {"text": datasets.Value("string")}
    if name == "image":
        config = VisionConfig.of(model_name_or_path="m", **more)
        return ImageModality(), config, lambda number: {"image": raw_bytes(PICTURES[number])}, image
    if name == "text":
        return (
            TextModality(),
            TextConfig.of(model_name_or_path="m", **more),
            lambda number: {"text": TEXTS[number]},
            text,
        )
    pair_config = MultimodalConfig.of(image_model_name_or_path="i", text_model_name_or_path="t", **more)
    # Both parts tell pairs apart, and in some of them one is missing.
    parts = lambda number: {  # noqa: E731
        "image": raw_bytes(PICTURES[number % 7]) if number % 5 else None, "text": TEXTS[number % 11],
    }  # fmt: skip
    return PairModality(), pair_config, parts, image | text


@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("name", ["image", "text", "pair"])
@given(rows=ROWS, seed=st.integers(0, 9))
@hypothesis_settings(max_examples=15, phases=DRAWN_ONLY)
def test_no_content_and_no_group_is_in_two_splits(
    name: str,
    group: str | None,
    rows: list[tuple[int, int | None]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each row is in one split, whatever copies and groups there are; classes cross both."""
    modality, config, sample, features = kind(name, tmp_path_factory.getbasetemp() / "cache", group)
    # Some with a content and a group of their own, so that there is something to split.
    rows = [*rows, *((number, 100 + number) for number in range(41))]
    table = [
        sample(number) | {"patient": None if patient is None else f"p{patient}", "label": "ab"[position % 2]}
        for position, (number, patient) in enumerate(rows)
    ]
    features = features | dict.fromkeys(("patient", "label"), datasets.Value("string"))
    data = datasets.Dataset.from_list(table, features=datasets.Features(features))
    splits = load_splits(config.replaced(split_seed=seed), modality, datasets.DatasetDict(train=data))
    numbers = {split: part.rows.tolist() for split, part in splits.items()}
    assert sorted(row for part in numbers.values() for row in part) == list(range(len(rows)))
    contents = {split: {repr(sample(rows[row][0])) for row in part} for split, part in numbers.items()}
    assert not contents["train"] & contents["test"]
    assert not contents["validation"] & (contents["train"] | contents["test"])
    if group:
        groups = {split: {rows[row][1] for row in part} - {None} for split, part in numbers.items()}
        assert not groups["train"] & groups["test"]
        assert not groups["validation"] & (groups["train"] | groups["test"])
    assert splits.copies == {"validation": 0, "test": 0}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_rows_are_joined_from_row_to_row(keys: list[tuple[int, int]]) -> None:
    """By either key, and transitively; 0 joins nothing."""
    first, second = (np.asarray(column, dtype=np.uint64) for column in zip(*keys, strict=True))
    units = units_of([first, second])
    joined = list(range(len(keys)))
    for _ in keys:
        for a, (one, other) in enumerate(keys):
            for b, (same, another) in enumerate(keys):
                if one == same or (other and other == another):
                    joined[a] = joined[b] = min(joined[a], joined[b])
    together = np.equal.outer(units.of_rows, units.of_rows)
    assert together.tolist() == np.equal.outer(np.asarray(joined), np.asarray(joined)).tolist()
    assert [units.keys[unit] for unit in units.of_rows] == [
        min(first[row] for row, number in enumerate(joined) if number == joined[position])
        for position in range(len(keys))
    ]


def test_noise_in_four_copies_each_cannot_be_known_in_test(settings: Settings, tmp_path: Path) -> None:
    """Pictures without any pattern: who has seen no copy of a test picture cannot know its class."""
    names = [f"{'ab'[number % 2]}/{number}" for number in range(40)]
    for copy in range(4):
        for name, pixels in zip(names, noise(40, 8, 8, 3), strict=True):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / f"{name}-{copy}.png")
    splits = load_splits(settings(dataset_name=str(tmp_path / "data")), ImageModality())
    assert {name: len(split) for name, split in splits.items()} == {"train": 112, "validation": 24, "test": 24}
    for split in (splits.train, splits.validation, splits.test):
        contents = [split.dataset[row]["image"]["path"] for row in split.rows.tolist()]
        assert all(len([other for other in contents if other[:-6] == path[:-6]]) == 4 for path in contents)


def test_one_more_picture_moves_hardly_any_other(settings: Settings, tmp_path: Path) -> None:
    """Wherever its name puts it, and whether or not other files are renamed."""
    names = [f"{'ab'[number % 2]}/{number:03}.png" for number in range(300)]
    folder = write_pictures(tmp_path / "data", [{"file_name": name} for name in names])

    def test_pictures() -> set[bytes]:
        test = load_splits(settings(dataset_name=str(folder)), ImageModality()).test
        return {Path(test.dataset[row]["image"]["path"]).read_bytes() for row in test.rows.tolist()}

    before = test_pictures()
    Image.fromarray(noise(8, 8, 3, seed=99)).save(folder / "a" / "000-first.png")
    for name in names[::3]:
        (folder / name).rename(folder / name.replace(".png", "-renamed.png"))
    after = test_pictures()
    assert 39 <= len(before) <= 51
    assert len(before - after) <= 1
    assert len(after - before) <= 1


def test_groups_stay_together_and_classes_in_proportion(text_settings: TextSettings, tmp_path: Path) -> None:
    """Ten messages of each of 60 authors; a text of numbers, such as 07, is read as it is written."""
    rows = [row | {"author": f"{number // 10:02}"} for number, row in enumerate(text_rows(600))]
    path = write_table(tmp_path / "a.csv", rows)
    splits = load_splits(text_settings(dataset_name=str(path), group_column_name="author"), TextModality())
    authors = {name: {rows[row]["author"] for row in split.rows.tolist()} for name, split in splits.items()}
    assert sum(map(len, authors.values())) == len(set.union(*authors.values())) == 60
    for name, share in (("test", 0.15), ("validation", 0.1275)):
        assert abs(len(splits.of(name)) - share * 600) <= 20
        assert np.ptp(np.bincount(splits.of(name).targets)) == 0
    assert "split off by group (author), content and class" in splits.describe()[1]
    assert splits.columns["text_column_name"] == "text"
    assert not any("not used" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ("multi_label_classification", [["x"], ["x", "y"], ["y"], []]),
        ("regression", [0.5, 1.5, 2.25, 7.125]),
    ],
)
def test_labels_and_numbers_are_divided_by_unit_too(
    target: str, values: Sequence[Any], text_settings: TextSettings
) -> None:
    rows = [
        {"text": f"message {number // 2}", "label": values[number // 2 % 4], "author": number // 8}
        for number in range(480)
    ]
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    config = text_settings(dataset_name=IN_MEMORY, group_column_name="author", problem_type=target)
    splits = load_splits(config, TextModality(), data)
    authors = [set((split.rows // 8).tolist()) for _, split in splits.items()]
    assert len(set.union(*authors)) == sum(map(len, authors)) == 60
    assert 58 <= len(splits.test) <= 88
    counts = np.bincount(splits.test.rows // 2 % 4)
    assert counts.min() == counts.max()


def sizes(splits: Splits) -> dict[str, int]:
    return {name: len(split) for name, split in splits.items()}


def test_the_split_does_not_depend_on_the_run(text_settings: TextSettings) -> None:
    """Neither on the samples that are verified nor on how many are kept or which seed the run has."""
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(text_rows(200)))

    def rows(**chosen: Any) -> dict[str, list[int]]:
        splits = load_splits(text_settings(dataset_name=IN_MEMORY, **chosen), TextModality(), data)
        return {name: split.rows.tolist() for name, split in splits.items()}

    usual = rows()
    assert rows(seed=5) == rows(verify_samples=0) == usual
    few = rows(max_train_samples_per_class=5)
    assert (few["validation"], few["test"], len(few["train"])) == (usual["validation"], usual["test"], 10)
    assert set(few["train"]) < set(usual["train"])
    other = rows(split_seed=1)["test"]
    assert len(set(other) & set(usual["test"])) < len(other) / 2


@pytest.mark.parametrize("verify_samples", [10_000, 7, 0])
def test_damaged_and_missing_pictures_change_no_split(verify_samples: int, settings: Settings, tmp_path: Path) -> None:
    """What is verified differs between a run and its demo, which must show samples of the same test split."""
    rows = [{"file_name": f"{number}.png", "label": "ab"[number % 2]} for number in range(200)]
    folder = write_pictures(tmp_path / "data", rows)
    write_table(folder / "metadata.csv", rows)
    whole = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole[: len(whole) // 2])
    chosen = settings(dataset_name=str(folder), on_bad_sample="skip", verify_samples=verify_samples)
    splits = load_splits(chosen, ImageModality())
    everything = load_splits(chosen.replaced(verify_samples=10_000), ImageModality())
    assert [split.rows.tolist() for _, split in splits.items()] == [
        split.rows.tolist() for _, split in everything.items()
    ]
    assert splits.rows_as_read[0].numbers.shape == (200,)


def test_each_picture_is_read_once_for_checks_and_keys(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only some are decoded; a further run reads none."""
    rows = [{"file_name": f"{'ab'[number % 2]}/{number}.png"} for number in range(40)]
    folder = write_pictures(tmp_path / "data", rows)
    reads: list[str] = []

    def counted(raw: dict[str, Any]) -> bytes:
        reads.append(raw["path"])
        return content(raw)

    monkeypatch.setattr(verification, "content", counted)
    for verify_samples in (10_000, 10):
        reads.clear()
        chosen = settings(dataset_name=str(folder), verify_samples=verify_samples)
        first = load_splits(chosen, ImageModality())
        assert len(reads) == len(set(reads)) == 40
        again = load_splits(chosen, ImageModality())
        assert len(reads) == 40
        assert [split.rows.tolist() for _, split in first.items()] == [
            split.rows.tolist() for _, split in again.items()
        ]


def test_groups_of_given_splits_that_are_in_training_too_are_reported(text_settings: TextSettings) -> None:
    """As numbers, names or class numbers whose order differs between the splits."""
    for feature in (datasets.Value("string"), None):
        data = {}
        for seed, (split, first) in enumerate({"train": 0, "validation": 8, "test": 20}.items()):
            names = [f"p{first + number // 2}" for number in range(20)]
            order = sorted(set(names), reverse=bool(seed))
            columns = datasets.Features({
                "text": datasets.Value("string"), "label": datasets.Value("string"),
                "patient": feature or datasets.ClassLabel(names=order),
            })  # fmt: skip
            rows = [row | {"patient": name} for row, name in zip(text_rows(20, seed=seed), names, strict=True)]
            data[split] = datasets.Dataset.from_list(rows, features=columns)
        splits = load_splits(
            text_settings(dataset_name=IN_MEMORY, group_column_name="patient"),
            TextModality(),
            datasets.DatasetDict(data),
        )
        assert (
            "Groups of column 'patient' in validation that are in training, too: 2 of 10, such as 'p8'." in splits.notes
        )
        assert not any("in test that are" in note for note in splits.notes)


def test_rows_without_a_group_are_counted_and_divided_by_their_content(text_settings: TextSettings) -> None:
    rows = [row | {"patient": None if number % 2 else number % 20} for number, row in enumerate(text_rows(100))]
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    splits = load_splits(text_settings(dataset_name=IN_MEMORY, group_column_name="patient"), TextModality(), data)
    assert "Rows without a group in column 'patient': 50 in train." in splits.notes
    assert len({row for row in splits.train.rows.tolist() if row % 2}) < 50


def test_a_class_of_one_group_stays_in_training_and_that_is_said(text_settings: TextSettings) -> None:
    rows = [row | {"patient": number // 4} for number, row in enumerate(text_rows(80))]
    rows += [{"text": f"rare {number}", "label": "rare", "patient": 99} for number in range(4)]
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    splits = load_splits(text_settings(dataset_name=IN_MEMORY, group_column_name="patient"), TextModality(), data)
    assert set(range(80, 84)) <= set(splits.train.rows.tolist())
    assert "In validation no sample has the class rare." in splits.notes
    assert "In test no sample has the class rare." in splits.notes


def test_a_group_column_that_cannot_be_used_is_refused(text_settings: TextSettings, tmp_path: Path) -> None:
    """Each advice works."""
    rows = [row | {"visit": {"day": number}, "one": "same"} for number, row in enumerate(text_rows(40))]
    path = str(write_table(tmp_path / "a.jsonl", rows))

    def load(**chosen: Any) -> Splits:
        return load_splits(text_settings(dataset_name=path, **chosen), TextModality())

    with user_error_with(expected="column 'patient'", found="text, label", do="set --group_column_name to one"):
        load(group_column_name="patient")
    with user_error_with(expected="names or numbers of groups", found="day", do="name another column"):
        load(group_column_name="visit")
    with user_error_with(
        expected="at least 3 groups of column 'one' with the same class, to split a test split off training",
        found="1 groups of column 'one' in all",
        do="add samples, or a test split of your own, or leave --group",
    ):
        load(group_column_name="one")
    assert sizes(load(group_column_name="text")) == sizes(load()) == {"train": 28, "validation": 6, "test": 6}


def test_copies_alone_cannot_be_split(text_settings: TextSettings) -> None:
    rows = [{"text": f"text of {label}", "label": label} for label in "ab" for _ in range(10)]
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    with user_error_with(
        expected="at least 3 different samples with the same class",
        found="2 different samples in all",
        do="add samples, or a test split of your own",
    ):
        load_splits(text_settings(dataset_name=IN_MEMORY), TextModality(), data)
    others = datasets.Dataset.from_list([{"text": f"other {label}", "label": label} for label in "ab"])
    with_test = datasets.DatasetDict(train=data["train"], test=others, validation=others)
    assert sizes(load_splits(text_settings(dataset_name=IN_MEMORY), TextModality(), with_test))["train"] == 20


def test_pairs_of_one_picture_can_be_grouped_by_it(pair_settings: PairSettings, tmp_path: Path) -> None:
    """Several texts belong to each picture."""
    pictures = pair_rows(30)
    write_pictures(tmp_path, pictures)
    rows = [row | {"text": f"{row['text']} {copy}"} for row in pictures for copy in range(3)]
    write_table(tmp_path / "metadata.csv", rows)
    splits = load_splits(pair_settings(dataset_name=str(tmp_path), group_column_name="file_name"), PairModality())
    named: list[set[int]] = [set((split.rows // 3).tolist()) for _, split in splits.items()]
    assert sum(map(len, named)) == len(set.union(*named)) == 30
