"""Delimited text: each row arrives with its line, or the line that cannot be read is named."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from hf_transfer.data.delimited import layout_of, read_delimited
from hf_transfer.errors import UserError
from tests.data.conftest import user_error_with

GOOD = "text,label\n" + "".join(f"word{number},{'ab'[number % 2]}\n" for number in range(8))
# Fields that need quotes, or look as if they did; the number keeps texts apart.
SIGNS = st.text(alphabet='xyz ,;|\t"\n\u00e9\u4f60', max_size=12)


def written(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, encoding: str = "utf-8", delimiter: str | None = None) -> list[tuple[Any, ...]]:
    """The fields of each row."""
    return [tuple(row.values()) for row in read_delimited(path, encoding, delimiter).table.to_pylist()]


def lines(path: Path) -> list[int]:
    return list(read_delimited(path, "utf-8").lines.tolist())


@limits(max_examples=150, deadline=None)
@given(
    texts=st.lists(SIGNS, min_size=3, max_size=12),
    delimiter=st.sampled_from(",;|\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_each_row_that_a_csv_writer_writes_arrives_at_its_line(
    texts: list[str], delimiter: str, end: str, quoting: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given_rows = [(f"{number}{text}", f"label{number % 2}") for number, text in enumerate(texts)]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(("text", "label"))
    expected = []
    for row in given_rows:
        expected.append(buffer.getvalue().count("\n") + 1)
        writer.writerow(row)
    path = written(tmp_path_factory.mktemp("table"), buffer.getvalue())
    assert rows(path) == given_rows
    assert lines(path) == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [('pipe 5",a', 'pipe 5"'), ('he said "no" twice,b', 'he said "no" twice'), ("it's 6' 2\",a", "it's 6' 2\"")],
)
def test_a_quote_within_a_field_is_text(line: str, field: str, tmp_path: Path) -> None:
    assert rows(written(tmp_path, f"{GOOD}{line}\nlast,b\n"))[8:] == [(field, line[-1]), ("last", "b")]


@pytest.mark.parametrize(
    ("content", "fields", "line"),
    [
        ('"12" screen,a\nlast,b\n', ['"12" screen', "last"], 10),
        ('first,b\n"not closed,a\nlast,b\n', ["first", '"not closed', "last"], 11),
        ('"one,a\ntwo,b\nthree",b\nlast,a\n', ['"one', "two", 'three"', "last"], 10),
        ('last,"a\n', ["last"], 10),
    ],
)
def test_quotes_that_enclose_no_whole_field_are_read_as_text_and_noted(
    content: str, fields: list[str], line: int, tmp_path: Path
) -> None:
    """Other readers join all lines up to the next quote to one field, or to the end of the file."""
    path = written(tmp_path, GOOD + content)
    assert [row[0] for row in rows(path)[8:]] == fields
    assert lines(path) == list(range(2, 10 + len(fields)))
    assert read_delimited(path, "utf-8").notes == [
        f"a.csv: quotes are read as text, since the one in line {line} encloses no whole field."
    ]


QUOTED = 'a quoted field,"yes, with a comma"\n'


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ('"12" screen,a', "line 10: a field that begins with a quote, and goes on after the next one"),
        ('"not closed,a', "line 10: a quote that is closed only in line 11"),
        ('word,"a', "line 10: a quote that is closed only in line 11"),
    ],
)
def test_a_stray_quote_beside_quoted_fields_is_refused_with_its_line_and_the_advice_helps(
    bad: str, found: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f"{GOOD}{bad}\n{QUOTED}")
    with user_error_with(expected=f"in {path} fields", found=found, do="in line 10 enclose that field in quotes"):
        read_delimited(path, "utf-8")
    fields = bad.split(",")
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    assert rows(written(tmp_path, GOOD + buffer.getvalue() + QUOTED))[8] == tuple(fields)


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, f'{GOOD}{QUOTED}"not closed,a\nlast,b\n')
    with user_error_with(expected="fields", found="line 11: a quote that is never closed", do="in line 11 enclose"):
        read_delimited(path, "utf-8")


@pytest.mark.parametrize("first", ["label", "text", "score"])
def test_lines_between_two_stray_quotes_are_not_swallowed(first: str, tmp_path: Path) -> None:
    """The file is valid: it has a text of three lines, each of which happens to be a row."""
    rows_of = {
        "label": ("label,text", "{1},{0}", 'a,"one\nb,two\nb,three"'),
        "text": ("text,label", "{0},{1}", '"one,a\ntwo,b\nthree",b'),
        "score": ("text,score", "{0},{2}", '"one,0.5\ntwo,1e3\nthree",-4'),
    }
    header, row, bad = rows_of[first]
    good = "".join(row.format(f"w{n}", "ab"[n % 2], n * 1.5) + "\n" for n in range(8))
    path = written(tmp_path, f"{header}\n{good}{bad}\n{row.format(chr(34) + 'x, y' + chr(34), 'a', 1)}\n")
    with user_error_with(
        expected="fields", found="line 10: a quote that is closed only in line 12", do="save the table as JSON"
    ):
        read_delimited(path, "utf-8")


def test_a_text_of_several_lines_is_one_row_and_is_noted(tmp_path: Path) -> None:
    path = written(tmp_path, f'{GOOD}"Dear all,\n\nas said, no.\nBye",a\n"x\r\ny",b\nlast,a\n')
    assert rows(path)[8:] == [("Dear all,\n\nas said, no.\nBye", "a"), ("x\r\ny", "b"), ("last", "a")]
    assert lines(path)[8:] == [10, 14, 16]
    assert read_delimited(path, "utf-8").notes == [
        "a.csv: rows with line breaks in quotes: 2, the first in lines 10 to 13."
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\rone,a\rtwo,b\r", [2, 3]),
        ("text,label\r\none,a\r\ntwo,b", [2, 3]),
        ("\n  \ntext,label\n\none,a\n   \n\ntwo,b\n\n\n", [5, 8]),
        ("\ufefftext,label\none,a\ntwo,b\n", [2, 3]),
        ("sep=;\r\ntext;label\r\none;a\r\ntwo;b\r\n", [3, 4]),
    ],
    ids=["old Mac", "Windows", "blank lines", "mark", "Excel's first line"],
)
def test_ends_of_lines_blank_lines_and_marks_are_no_part_of_rows(
    content: str, expected: list[int], tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    assert rows(path) == [("one", "a"), ("two", "b")]
    assert lines(path) == expected


QUOTE, ADD = (
    "enclose fields that hold the separator ',' in quotes",
    "add the missing fields, which may be empty, or remove these rows",
)


@pytest.mark.parametrize(
    ("bad", "found", "do"),
    [
        ("one,two,a", "line 10: 3", QUOTE),
        ("one", "line 10: 1", ADD),
        ("one,a\n\nx,y,b\nz\nlast,a", "line 12: 3, line 13: 1", f"{QUOTE}, {ADD}"),
        ('"one\ntwo",b\nx,a,', "line 12: 3", QUOTE),
        ("one\n" * 9, "line 10: 1, line 11: 1, line 12: 1, line 13: 1, line 14: 1 and 4 more", ADD),
    ],
)
def test_too_many_or_too_few_fields_are_refused_with_their_lines(bad: str, found: str, do: str, tmp_path: Path) -> None:
    """A row without its last field is not told to put it in quotes."""
    path = written(tmp_path, f"{GOOD}{bad}\n")
    with pytest.raises(UserError) as refused:
        read_delimited(path, "utf-8")
    assert str(refused.value).splitlines() == [
        f"Expected: as many fields in each row of {path} as in its first line: 2 (text, label)",
        f"Found:    {found}",
        f"Do this:  {do}; or name another separator with --delimiter",
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "an empty file"),
        ("\n \n", "an empty file"),
        ("text,label\n", "no rows below the names of the columns"),
        ("text,label,text\na,b,c\n", "2 columns called 'text'"),
        (" label,label\na,b\n", "2 columns called 'label'"),
        ("text,label,\none,a,\ntwo,b,x\n", "none for column 3, which has values"),
    ],
)
def test_tables_without_rows_or_with_unclear_columns_are_refused(content: str, found: str, tmp_path: Path) -> None:
    with user_error_with(expected=str(tmp_path / "a.csv"), found=found, do=""):
        read_delimited(written(tmp_path, content), "utf-8")


@pytest.mark.parametrize(
    "content",
    [",text,label\n0,one,a\n7,two,b\n", "text,label,\none,a,\ntwo,b,\n", " text , label ,,\none,a,,\ntwo,b,,\n"],
)
def test_columns_without_a_name_and_without_values_or_with_an_index_are_left_out(content: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    assert read_delimited(path, "utf-8").table.column_names == ["text", "label"]
    assert [row[0].strip() for row in rows(path)] == ["one", "two"]


def test_a_field_is_as_long_as_it_is(tmp_path: Path) -> None:
    """The standard library refuses more than 131,072 signs, unless it is asked not to."""
    before = csv.field_size_limit()
    assert rows(written(tmp_path, f"text,label\n{'x' * 300_000},a\n"))[0][0] == "x" * 300_000
    assert csv.field_size_limit() == before


NAMES = {";": "semicolon", "\t": "tab", "|": "pipe", ",": "comma"}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("sign", list(NAMES))
def test_the_separator_is_seen_whatever_the_suffix_is(sign: str, suffix: str, tmp_path: Path) -> None:
    """Each text has another separator in it, some of them in quotes."""
    other = ";" if sign != ";" else ","
    content = f'text{sign}label\none{other} two{sign}a\nthree{sign}b\n"x{sign}y"{sign}a\n'
    path = written(tmp_path, content, f"a.{suffix}")
    assert rows(path) == [(f"one{other} two", "a"), ("three", "b"), (f"x{sign}y", "a")]
    usual = {"csv": ",", "tsv": "\t"}[suffix]
    noted = [f"a.{suffix}: fields are separated by a {NAMES[sign]}."] if sign != usual else []
    assert read_delimited(path, "utf-8").notes == noted


def test_a_row_with_a_surplus_separator_does_not_change_what_is_seen(tmp_path: Path) -> None:
    path = written(tmp_path, "text;label\none, two;a\nthree;b;c\nfour;b\n")
    with user_error_with(expected="2 (text, label)", found="line 3: 3", do="separator ';'"):
        read_delimited(path, "utf-8")


@pytest.mark.parametrize(("sign", "setting"), [("^", "^"), (":", ":"), ("~", "~")])
def test_one_column_whose_name_has_a_separator_is_refused_and_the_advice_helps(
    sign: str, setting: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f"text{sign}label\none{sign}a\n")
    with user_error_with(
        expected="names of its columns", found=f"one column called 'text{sign}label'", do=f"--delimiter '{sign}'"
    ):
        read_delimited(path, "utf-8")
    assert rows(path, delimiter=setting) == [("one", "a")]


@pytest.mark.parametrize("name", list(NAMES.values()))
def test_a_separator_can_be_named_and_a_wrong_one_does_not_pass(name: str, tmp_path: Path) -> None:
    sign = {word: sign for sign, word in NAMES.items()}[name]
    path = written(tmp_path, f"text{sign}label\none{sign}a\n")
    assert rows(path, delimiter=name) == rows(path, delimiter=sign) == [("one", "a")]
    with user_error_with(
        expected="columns", found=f"one column called {f'text{sign}label'!r}", do=f"--delimiter {name}"
    ):
        read_delimited(path, "utf-8", "^")


def test_spaces_that_follow_each_separator_belong_to_no_field(tmp_path: Path) -> None:
    path = written(tmp_path, 'text, label\none, a\n"two, three", b\n')
    assert rows(path) == [("one", "a"), ("two, three", "b")]
    assert rows(written(tmp_path, "text,label\none, a\n")) == [("one", " a")]


def test_a_table_of_one_column_has_one(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "text\none\n\ntwo\n")) == [("one",), ("two",)]
    assert layout_of(written(tmp_path, "some text\none\n"), "utf-8").delimiter == ","


def test_the_digest_tells_contents_and_separators_apart(tmp_path: Path) -> None:
    first = read_delimited(written(tmp_path, "text,label;x\none,a;x\n"), "utf-8")
    same = read_delimited(written(tmp_path, "text,label;x\none,a;x\n", "b.csv"), "utf-8")
    others = [
        read_delimited(written(tmp_path, "text,label;x\none,a;x\n"), "utf-8", ";"),
        read_delimited(written(tmp_path, "text,label;x\none,a;y\n"), "utf-8"),
    ]
    assert first.digest == same.digest
    assert len({first.digest, *(other.digest for other in others)}) == 3
