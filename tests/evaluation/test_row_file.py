"""`OUT/data.json` accounts for every row of the data as they were read."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hf_transfer.data.accounting import account
from hf_transfer.data.checked import load_splits
from hf_transfer.data.fates import ITS_OWN, Accounted, Fate, Source
from hf_transfer.data.origins import Origins
from hf_transfer.data.splits import Split
from hf_transfer.evaluation.row_file import Row, read_rows, write_rows
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig
from tests.conftest import DRAWN_ONLY
from tests.data.conftest import text_rows, user_error_with
from tests.evaluation.conftest import Run

IN_MEMORY = "memory:0123456789abcdef"
FATES = (Fate("train", "used"), Fate("test", "used"), Fate("train", "masked", ""), Fate(None, "dropped", "no label"))


def fate_of(rows: Accounted, row: int) -> Fate:
    fate = rows.fates[int(rows.numbers[row])]
    return fate._replace(reason=rows.reasons[row]) if fate.reason == ITS_OWN else fate


def accounted(numbers: list[int], origins: Origins | None = None) -> Accounted:
    masked = {row: f"bad {row}" for row, number in enumerate(numbers) if number == 2}
    return Accounted("train", FATES, np.asarray(numbers, dtype=np.int16), masked, origins)


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 30)), max_size=40))
def test_what_is_written_is_read_again(
    rows: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever files and lines the rows have; line 0 stands for a file without lines."""
    folder = tmp_path_factory.mktemp("run")
    numbers, files, lines = ([row[part] for row in rows] for part in range(3))
    names = ("/data/a/x.csv", "/data/b.csv", "/data/a/ü \udce9.csv")
    origins = Origins(names, np.asarray(files, dtype=np.int32), np.asarray(lines, dtype=np.int64))
    written = accounted(numbers, origins)
    write_rows(folder, [written])
    read = list(read_rows(folder))
    assert len(read) == len(rows)
    for number, row in enumerate(read):
        split, fate, reason = fate_of(written, number)
        assert row == Row("train", number, names[files[number]], lines[number] or None, split, fate, reason)


def test_rows_without_known_files_have_their_numbers(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [accounted([0, 2])])
    assert path.name == "data.json"
    assert list(read_rows(tmp_path)) == [
        Row("train", 0, None, None, "train", "used", None), Row("train", 1, None, None, "train", "masked", "bad 1"),
    ]  # fmt: skip


def test_a_million_rows_of_a_table_take_less_than_half_a_megabyte(tmp_path: Path) -> None:
    """And replace the shorter file of an earlier run, as it replaces them."""
    write_rows(tmp_path, [accounted([0])])
    count = 1_000_000
    numbers = (np.random.default_rng(0).random(count) < 0.15).astype(np.int16)
    origins = Origins(("/data/a.csv",), np.zeros(count, dtype=np.int32), np.arange(2, count + 2))
    path = write_rows(tmp_path, [Accounted("train", FATES, numbers, {}, origins)])
    assert [one.name for one in tmp_path.iterdir()] == ["data.json.gz"]
    assert path.stat().st_size < 500_000
    assert sum(row.split == "test" for row in read_rows(tmp_path)) == numbers.sum()
    write_rows(tmp_path, [accounted([0])])
    assert [one.name for one in tmp_path.iterdir()] == ["data.json"]


def test_the_file_of_a_folder_without_a_run_is_asked_for(tmp_path: Path) -> None:
    with user_error_with(expected="data.json", found="neither", do="name the --output_dir of a run"):
        list(read_rows(tmp_path))


@given(
    st.lists(st.sampled_from(["train", "validation", "test", "dropped", "limit"]), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
)
def test_each_row_has_the_fate_that_it_met(parts: list[str], masked: set[int]) -> None:
    """Whatever splits are made of a source, and whichever rows are left out."""
    places = {part: np.asarray([row for row, one in enumerate(parts) if one == part], dtype=np.int64) for part in {
        *parts, "train", "validation", "test", "dropped", "limit"}}  # fmt: skip
    nothing = datasets.Dataset.from_dict({"text": [""] * len(parts)})
    splits = {
        name: Split(nothing, places[name], places[name], {row: "bad" for row in places[name].tolist() if row in masked})
        for name in ("train", "validation", "test")
    }
    source = Source("train", len(parts), ("train", "validation", "test"))
    (rows,) = account([source], splits, places["limit"], {"train": places["dropped"]})
    for row, part in enumerate(parts):
        split, fate, reason = fate_of(rows, row)
        if part in splits:
            assert (split, fate) == (part, "masked" if row in masked else "used")
            assert reason == ("bad" if row in masked else None)
        elif part == "limit":
            assert (split, fate, reason) == ("train", "unused", "more than max_train_samples_per_class")
        else:
            assert (split, fate, reason) == (None, "dropped", "no label")


@given(
    names=st.sampled_from(
        [("train",), ("train", "test"), ("training", "dev", "eval"), ("train", "validation", "extra")]
    ),
    limit=st.sampled_from([None, 3]),
    bad=st.integers(0, 3),
)
@hypothesis_settings(max_examples=12, phases=DRAWN_ONLY)
def test_as_many_rows_are_accounted_for_as_were_read(
    names: tuple[str, ...], limit: int | None, bad: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of every split, also of one that is not used; masked rows have their reasons."""
    folder, data = tmp_path_factory.mktemp("run"), {}
    for seed, name in enumerate(names):
        table = text_rows(300, seed=seed)
        for written in table[: bad if seed == 0 else 0]:
            written["text"] = " "
        data[name] = datasets.Dataset.from_list(table)
    config = TextConfig.of(
        model_name_or_path="m", dataset_name=IN_MEMORY, output_dir="o", on_bad_sample="skip",
        max_train_samples_per_class=limit,
    )  # fmt: skip
    splits = load_splits(config, TextModality(), datasets.DatasetDict(data))
    write_rows(folder, splits.rows_as_read)
    rows = list(read_rows(folder))
    assert len(rows) == 300 * len(names) == json.loads((folder / "data.json").read_text())["rows"]
    for split, part in splits.items():
        rows_of_split = [row for row in rows if row.split == split and row.fate in ("used", "masked")]
        assert [row.number for row in rows_of_split] == part.rows.tolist()
        masked = {row.number: row.reason for row in rows_of_split if row.fate == "masked"}
        assert masked == part.unreadable
    fates = {row.source: {one.fate for one in rows if one.source == row.source} for row in rows}
    if "extra" in names:
        assert fates["extra"] == {"unused"}
    if limit:
        assert "unused" in fates[names[0]]


def test_a_run_writes_the_file(finished_run: Run) -> None:
    """Of an embedded sample, too."""
    rows = list(read_rows(finished_run.out))
    samples = json.loads((finished_run.out / "results.json").read_text())["samples"]
    assert {split: sum(row.split == split and row.fate == "used" for row in rows) for split in samples} == samples
    assert len({(row.source, row.number) for row in rows}) == len(rows)
