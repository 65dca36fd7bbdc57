"""JSON files: every form that pandas writes, lines of rows, and faults with their lines."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from hf_transfer.data.json_files import read_json
from tests.data.conftest import text_rows, user_error_with

FRAME = pandas.DataFrame({"text": ["one", "two", "three"], "label": ["a", "b", "a"], "score": [1.5, None, 3.0]})
ROWS = [{"text": text, "label": label, "score": score} for text, label, score in zip(
    ["one", "two", "three"], ["a", "b", "a"], [1.5, None, 3.0], strict=True
)]  # fmt: skip


def written(folder: Path, content: str | bytes, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, encoding: str = "utf-8") -> list[dict[str, Any]]:
    return list(read_json(path, encoding).table.to_pylist())


@pytest.mark.parametrize("index", [[0, 1, 2], [5, 9, 7], ["x", "y", "z"]], ids=["counted", "shuffled", "named"])
@pytest.mark.parametrize("form", ["records", "columns", "split", "index", "table"])
def test_every_form_that_pandas_writes_is_read(form: Any, index: list[Any], tmp_path: Path) -> None:
    frame = FRAME.set_axis(index, axis="index")
    assert rows(written(tmp_path, frame.to_json(orient=form))) == ROWS


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (FRAME.to_json(orient="records", lines=True), [1, 2, 3]),
        (json.dumps(ROWS), [1, 1, 1]),
        (json.dumps(ROWS, indent=2), [2, 7, 12]),
        ("\n\n" + "\n\n".join(map(json.dumps, ROWS)), [3, 5, 7]),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 6, 11]),
        ("[\r\n" + ",\r\n".join(map(json.dumps, ROWS)) + "\r\n]", [2, 3, 4]),
        (json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}), [0, 0, 0]),
        (json.dumps({"version": "1.0", "data": ROWS}), [0, 0, 0]),
    ],
    ids=["lines", "list", "indented", "blank lines", "objects", "Windows", "lists", "wrapped"],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_arrive_with_the_lines_at_which_they_start(
    content: str, lines: list[int], name: str, tmp_path: Path
) -> None:
    path = written(tmp_path, content, name)
    assert rows(path) == ROWS
    assert read_json(path, "utf-8").lines.tolist() == lines


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("lines", [True, False])
def test_other_encodings_are_read(encoding: str, lines: bool, tmp_path: Path) -> None:
    frame = FRAME.assign(text=["caf\u00e9", "two", "three"])
    content = frame.to_json(orient="records", lines=lines, force_ascii=False).encode(encoding)
    assert [row["text"] for row in rows(written(tmp_path, content), encoding)] == ["caf\u00e9", "two", "three"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_texts_that_look_like_dates_stay_as_they_are(name: str, tmp_path: Path) -> None:
    days = ["2020-01-01", "2020-01-01 00:00:00", "2021-02-03T04:05:06Z"]
    path = written(tmp_path, "\n".join(json.dumps({"text": day, "label": "a"}) for day in days), name)
    assert [row["text"] for row in rows(path)] == days


def test_a_value_that_a_row_lacks_is_missing_and_a_single_row_is_one(tmp_path: Path) -> None:
    path = written(tmp_path, '[{"text": "one"}, {"text": "two", "label": "a"}]')
    assert rows(path) == [{"text": "one", "label": None}, {"text": "two", "label": "a"}]
    path = written(tmp_path, '\n{"text": "one", "labels": ["a", "b"]}\n', "b.jsonl")
    assert rows(path) == [{"text": "one", "labels": ["a", "b"]}]
    assert read_json(path, "utf-8").lines.tolist() == [2]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"text": "one"}\n\n{"text": "two"\n{"text": "three"}\n', "line 3, column 15: Expecting ',' delimiter"),
        ('[\n{"text": "one"},\n{"text" "two"}\n]', "line 3, column 9: Expecting ':' delimiter"),
        ('[\n{"text": "one"},\n{"text": "two"}\n', "line 3, column 16: Expecting ']'"),
        ('[{"text": "one"}]\n[{"text": "two"}]', "line 2, column 1: Something after the end of the list"),
        ('{"text": "one"}\nnot json\n', "line 2, column 1: Expecting value"),
    ],
    ids=["lines", "list", "cut", "two lists", "words"],
)
def test_a_fault_is_named_by_its_line(content: str, found: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with user_error_with(expected=f"JSON in {path}", found=found, do="correct this line"):
        read_json(path, "utf-8")


@pytest.mark.parametrize(
    ("content", "found", "do"),
    [
        ("[]", "no rows", "add rows"),
        ("", "no rows", "add rows"),
        ("{}", "an empty object", "orient='records'"),
        ('{"text": ["one", "two"], "label": ["a"]}', "lists of different lengths", "orient='records'"),
        ('[["one", "a"], ["two", "b"]]', 'line 1: ["one", "a"], which is no object', "write each row as an object"),
        ('{"p": {"q": 1}, "r": {"q": 2}}', "an object of p, r, each with q", "orient='records'"),
    ],
)
def test_another_form_is_refused_and_the_advice_helps(content: str, found: str, do: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with user_error_with(expected=str(path), found=found, do=do):
        read_json(path, "utf-8")
    FRAME.to_json(path, orient="records")
    assert rows(path) == ROWS


def test_lines_of_rows_are_all_there_whatever_is_in_them(tmp_path: Path) -> None:
    """Many rows, so that they are read in several blocks."""
    given = [row | {"text": f'{row["text"]} "\u2028\\n{number}' * 50} for number, row in enumerate(text_rows(5000))]
    path = written(tmp_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given), "a.jsonl")
    table = read_json(path, "utf-8")
    assert table.table.to_pylist() == given
    assert table.lines.tolist() == list(range(1, 5001))
