"""Values of a table are read as they are written, whatever they look like, or a message says why they are not."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_transfer.data.checked import load_splits
from hf_transfer.data.hub_access import RepositoryInfo
from hf_transfer.data.rows import texts_of
from hf_transfer.data.splits import Splits
from hf_transfer.errors import UserError
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig, VisionConfig
from tests.conftest import DRAWN_ONLY
from tests.data.conftest import TextSettings, text_rows, user_error_with, write_table
from tests.data.small_folders import read_texts

KINDS = ["csv", "tsv", "json", "jsonl", "parquet"]
# What programs have been seen to take for something else than a piece of text.
TEMPTING = [
    "1", "01", "1.0", "0.10", "1e3", "+1", " 1", "0x10", "1_0", "12345678901234567890123", "inf", "nan", "NaN", "None",
    "null", "NA", "N/A", "true", "True", "TRUE", "10:30", "[1]", "{}", "=1+1",
    "#x", "-", "a ", " a", "a\tb", "a\nb", "a\rb", "a\r\nb", "\u2028x", "x\x85", '"', '""', "'", ",", ";", "\\n", "x\0",
    "\ufeffa", "\x1a", "e\u0301", "\U0001f600", "<script>", "a|b",
]  # fmt: skip
TEXTS = st.sampled_from(TEMPTING) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5).filter(lambda rows: len({row[1] for row in rows}) > 1)


def texts_with_labels(splits: Splits) -> list[tuple[str | None, str]]:
    """Of all splits, one after the other."""
    return [
        (text, splits.target.names[label])
        for _, split in splits.items()
        for (text,), label in zip(texts_of(split), split.targets, strict=True)
    ]


@given(st.sampled_from(KINDS), ROWS)
@settings(max_examples=400, phases=DRAWN_ONLY)
@example("csv", [("x", "01"), ("y", "1")])
@example("tsv", [("007", "TRUE"), ("7", "True")])
@example("csv", [("x\0", "a"), ("y", "b")])
@example("tsv", [("x", "a"), ("y", "b\0")])
@example("json", [("x\0", "a"), ("y", "b")])
@example("parquet", [("x\0", "a"), ("y", "b")])
def test_texts_and_labels_are_read_as_they_are_written(kind: str, rows: list[tuple[str, str]]) -> None:
    """Different labels stay different classes: 01 and 1, 1.0 and 1, TRUE and True.

    A file of CSV that has zero bytes is damaged, or in another encoding: it is refused, with the line.
    """
    written = [row for row in rows for _ in range(3)]
    if kind in ("csv", "tsv") and "\0" in "".join(map("".join, rows)):
        with (
            TemporaryDirectory() as folder,
            user_error_with(
                expected="text in utf-8", found="a byte with the value 0, which no text has", do="remove that byte"
            ),
        ):
            path = write_table(Path(folder) / f"a.{kind}", [{"text": text, "label": label} for text, label in written])
            read_texts(path)
        return
    with TemporaryDirectory() as folder:
        for split in ("train", "validation", "test"):
            write_table(Path(folder) / f"{split}.{kind}", [{"text": text, "label": label} for text, label in written])
        assert texts_with_labels(read_texts(Path(folder))) == written * 3


def test_columns_that_the_settings_name_are_read_as_they_are_written_too(tmp_path: Path) -> None:
    rows = [{"number": f"00{n}", "other": f"0{n}", "code": ("01", "1")[n % 2]} for n in range(12)]
    path = write_table(tmp_path / "a.csv", rows)
    columns = {"text_column_name": "number", "text_pair_column_name": "other", "label_column_name": "code"}
    splits = read_texts(path, **columns)
    assert splits.target.names == ["01", "1"]
    assert sorted(pair for _, split in splits.items() for pair in texts_of(split)) == sorted(
        (row["number"], row["other"]) for row in rows
    )


def test_a_label_far_down_a_file_is_the_same_class_as_at_its_head(tmp_path: Path) -> None:
    """CSV files are read ten thousand rows at a time, and the last part may have nothing but digits."""
    labels = ["a"] * 9_990 + ["01"] * 12_000
    path = write_table(tmp_path / "a.csv", [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    assert read_texts(path).target.names == ["01", "a"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_whole_numbers_that_are_text_are_classes_in_the_order_of_numbers(kind: str, tmp_path: Path) -> None:
    """So that class 10 of a CSV file is not number 2 of the model."""
    rows = [{"text": f"t{n}", "label": str(n % 12 - 1)} for n in range(48)]
    assert read_texts(write_table(tmp_path / f"a.{kind}", rows)).target.names == [str(n) for n in range(-1, 11)]


def test_fractions_that_are_all_different_are_no_classes_of_a_csv_file(tmp_path: Path) -> None:
    """Grades with halves are, though."""
    rows = [row | {"label": n / 7} for n, row in enumerate(text_rows(40))]
    assert read_texts(write_table(tmp_path / "a.csv", rows)).target.problem_type == "regression"
    grades = [row | {"label": 1 + n % 4 / 2} for n, row in enumerate(text_rows(40))]
    assert read_texts(write_table(tmp_path / "b.csv", grades)).target.names == ["1.0", "1.5", "2.0", "2.5"]


def test_an_unquoted_comma_does_not_move_the_fields(tmp_path: Path) -> None:
    """pandas takes the first of three fields under a header of two for the name of the row."""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"Hello, world {n},{'ab'[n % 2]}\n" for n in range(20)))
    with user_error_with(
        expected=f"as many fields in each row of {tmp_path / 'a.csv'} as in its first line: 2 (text, label)",
        found="line 2: 3, line 3: 3, line 4: 3, line 5: 3, line 6: 3 and 15 more",
        do="enclose fields that hold the separator ',' in quotes",
    ):
        read_texts(tmp_path / "a.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_look_like_dates_are_read_as_they_are_written(kind: str, tmp_path: Path) -> None:
    """Arrow makes dates of what JSON has as text, and of dates another text."""
    days = ("2020-01-01", "2020-01-01 00:00:00")
    path = write_table(tmp_path / f"a.{kind}", [row | {"label": days[n % 2]} for n, row in enumerate(text_rows(12))])
    assert read_texts(path).target.names == list(days)


def test_columns_that_look_like_the_log_of_an_agent_are_columns(tmp_path: Path) -> None:
    """`datasets` would convert such a table with another package."""
    rows = [{"type": "call", "id": "x", "version": 1, "cwd": "/"} | row for row in text_rows(20)]
    assert len(read_texts(write_table(tmp_path / "a.jsonl", rows)).train) in (14, 15)


def test_tables_that_belong_to_no_split_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("train", "test", "more"):
        write_table(folder / f"{name}.csv", text_rows(20, seed=len(name)))
    # What others have saved beside them.
    (folder / "dataset_infos.json").write_text("{}")
    assert f"Not used, since they are in no split: 1 tables, such as {folder / 'more.csv'}." in read_texts(folder).notes


WHOLE = {}
with TemporaryDirectory() as made:
    for name in KINDS:
        WHOLE[name] = write_table(Path(made) / f"a.{name}", text_rows(12)).read_bytes()
PIECES = st.sampled_from([
    b"", b'"', b"\n", b",", b"{", b"}", b"[", b"]", b"{}", b"null", b"[1, 2]", b'"a"', b'{"text": 1}\n', b"\0", b"\xff",
    b"\xff\xfe", b"text,text\n", b'{"label": {"a": 1}}\n', b'{"a":' * 400, b"1e999", b"PAR1", b"PK\x03\x04",
    b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"Rar!\x1a\x07\0", b"7z\xbc\xaf\x27\x1c", b"\x28\xb5\x2f\xfd",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged_tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """The end of a file's name, and bytes that are seldom such a file."""
    kind = draw(st.sampled_from(KINDS))
    whole, place = WHOLE[kind], draw(st.integers(0, len(WHOLE[kind])))
    values = "\n".join(map(json.dumps, draw(st.lists(VALUES, max_size=4))))
    content = draw(
        st.just(whole[:place])
        | st.builds(lambda piece, gap: whole[:place] + piece + whole[place + gap :], PIECES, st.integers(0, 4))
        | st.lists(PIECES, max_size=4).map(b"".join)
        | st.binary(max_size=30)
        | st.just(values.encode())
    )
    return kind, content


@given(damaged_tables(), st.booleans(), st.sampled_from(["utf-8", "latin-1", "utf-16"]))
@settings(suppress_health_check=[HealthCheck.too_slow], phases=DRAWN_ONLY)
@example(("json", b""), False, "utf-8")
@example(("csv", b"\x1f\x8b\x08\0"), False, "utf-8")
@example(("csv", b"Rar!\x1a\x07\0"), False, "utf-8")
@example(("jsonl", b"\n\n"), True, "utf-8")
def test_a_file_of_any_bytes_is_read_or_refused_with_a_message(
    table: tuple[str, bytes], images: bool, encoding: str
) -> None:
    """Whatever errors other libraries raise."""
    kind, content = table
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        path.write_bytes(content)
        given: dict[str, Any] = {
            "model_name_or_path": "m", "dataset_name": str(path), "output_dir": "o", "encoding": encoding,
        }  # fmt: skip
        with suppress(UserError):
            if images:
                load_splits(VisionConfig.of(**given, cache_dir=f"{folder}/cache"), ImageModality())
            else:
                load_splits(TextConfig.of(**given), TextModality())


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_file_without_rows_says_so(kind: str, text_settings: TextSettings, tmp_path: Path) -> None:
    (tmp_path / f"a.{kind}").write_bytes(b"")
    with user_error_with(expected=f"rows in {tmp_path / 'a'}", found="no rows", do="add rows, or remove"):
        load_splits(text_settings(dataset_name=str(tmp_path / f"a.{kind}")), TextModality())


def test_a_damaged_parquet_file_is_refused_with_a_message(tmp_path: Path) -> None:
    """Arrow reports damage in the list of columns as an error of the operating system."""
    whole = write_table(tmp_path / "a.parquet", text_rows(12)).read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    (tmp_path / "a.parquet").write_bytes(whole[: -8 - length] + b"\xff" * length + whole[-8:])
    with user_error_with(expected="a data set that can be read at", found="deserialize thrift", do="fix or remove"):
        read_texts(tmp_path / "a.parquet")


def test_invalid_utf_8_in_a_parquet_file_is_refused_before_samples_are_read(tmp_path: Path) -> None:
    good = pyarrow.array([row["text"].encode() for row in text_rows(12)])
    bad = pyarrow.array([b"\xff", *good.to_pylist()[1:]])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 12, bad.buffers())
    labels = pyarrow.array([row["label"] for row in text_rows(12)])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "a.parquet")
    with user_error_with(expected="a data set that can be read", found="Invalid UTF8", do="fix or remove"):
        read_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_may_have_the_signs_of_a_pattern_in_its_name(name: str, kind: str, tmp_path: Path) -> None:
    """No other table is read that would fit the pattern."""
    write_table(tmp_path / f"ab.{kind}", text_rows(30))
    write_table(tmp_path / "a1.csv", text_rows(30))
    splits = read_texts(write_table(tmp_path / f"{name}.{kind}", text_rows(20)))
    assert sum(len(split) for _, split in splits.items()) == 20


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a::b"])
def test_a_folder_of_pictures_may_have_the_signs_of_a_pattern_in_its_name(
    name: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """No other folder is read that would fit the pattern."""
    picture_folder(name="ab", cat=6, dog=6)
    folder = picture_folder(name=name, cat=7, dog=7)
    config = VisionConfig.of(
        model_name_or_path="m", dataset_name=str(folder), output_dir="o", cache_dir=str(tmp_path / "cache")
    )
    assert sum(len(split) for _, split in load_splits(config, ImageModality()).items()) == 14


def test_errors_of_the_network_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(*_: object, **__: object) -> None:
        raise ConnectionResetError("the line went dead")

    monkeypatch.setattr("hf_transfer.data.hub_access.ask_hub", lambda *_, **__: RepositoryInfo("0" * 40))
    monkeypatch.setattr(datasets, "load_dataset", broken)
    with user_error_with(expected="can be read at org/x", found="the line went dead", do="or repeat the command"):
        read_texts(Path("org/x"))
