"""Encodings of tables: marks, other encodings with advice that helps, bytes that no text has."""

import codecs
import re
from pathlib import Path

import pytest

from hf_transfer.data.delimited import read_delimited
from hf_transfer.errors import UserError
from tests.data.conftest import user_error_with

CONTENT = "text,label\ncaf\u00e9 one,a\nna\u00efve two,b\n"
TEXTS = ["caf\u00e9 one", "na\u00efve two"]
MARKS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE,
         "utf-32-be": codecs.BOM_UTF32_BE, "utf-8": codecs.BOM_UTF8}  # fmt: skip


def texts(path: Path, encoding: str) -> list[str]:
    return list(read_delimited(path, encoding).table["text"].to_pylist())


@pytest.mark.parametrize("wanted", ["utf-8", "latin-1"])
@pytest.mark.parametrize("encoding", list(MARKS))
def test_the_mark_at_the_beginning_says_the_encoding(encoding: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(MARKS[encoding] + CONTENT.encode(encoding))
    assert texts(path, wanted) == TEXTS
    name = encoding.upper()[:6].rstrip("-")
    noted = f"a.csv is read as {name}, as the mark at its beginning says."
    assert read_delimited(path, wanted).notes == ([] if encoding == wanted else [noted])
    assert read_delimited(path, encoding).notes == []


@pytest.mark.parametrize(
    "content", [CONTENT, "\u6587\u672c,\u6807\u7b7e\n\u4f60\u597d,\u597d\n", "text;label\r\none;a\r\n"]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("wanted", ["utf-8", "latin-1", "cp1252"])
def test_without_a_mark_the_advice_names_the_encoding_and_helps(
    encoding: str, wanted: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode(encoding))
    with user_error_with(expected="text in", found="every other byte is zero", do=f"add --encoding {encoding}, or"):
        read_delimited(path, codecs.lookup(wanted).name)
    assert len(read_delimited(path, encoding).table) == len(content.splitlines()) - 1
    assert len(read_delimited(path, encoding[:6]).table) == len(content.splitlines()) - 1


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "iso8859-15"])
@pytest.mark.parametrize("rows", [0, 100_000])
def test_the_advice_for_bytes_of_another_encoding_helps(encoding: str, rows: int, tmp_path: Path) -> None:
    """Also if they come long after the first lines."""
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.replace("\n", "\n" + "plain,a\n" * rows, 1).encode(encoding))
    with pytest.raises(UserError) as caught:
        read_delimited(path, "utf-8")
    assert f"line {rows + 2}: byte 0xe9 at column 4" in str(caught.value)
    advice = re.search(r"--encoding (\S+)", str(caught.value))
    assert advice is not None
    assert texts(path, advice[1])[rows:] == TEXTS


def test_utf_8_that_is_said_to_be_another_encoding_is_advised(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.encode())
    with user_error_with(expected="text in ascii", found="line 2: byte 0xc3 at column 4", do="--encoding utf-8"):
        read_delimited(path, "ascii")


@pytest.mark.parametrize(
    ("encoding", "wanted", "found", "do"),
    [
        ("utf-8", "utf-16", "no byte that is zero", "leave out --encoding"),
        ("utf-16-le", "utf-16-be", "text in UTF-16-LE", "use --encoding utf-16-le"),
        ("utf-16-be", "utf-32", "text in UTF-16-BE", "use --encoding utf-16-be"),
    ],
)
def test_a_file_that_is_not_in_the_encoding_of_several_bytes_is_refused(
    encoding: str, wanted: str, found: str, do: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.encode(encoding))
    with user_error_with(expected=f"text in {wanted}", found=found, do=do):
        read_delimited(path, wanted)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_zero_byte_is_refused_with_its_line(place: int, tmp_path: Path) -> None:
    """A file that was copied incompletely ends with many."""
    path = tmp_path / "a.csv"
    lines = [b"text,label", b"one,a", b"two,b"]
    lines[place] += b"\0\0"
    path.write_bytes(b"\n".join(lines))
    with user_error_with(
        expected=f"text in utf-8 in {path}", found=f"line {place + 1}: a byte with the value 0", do=""
    ):
        read_delimited(path, "utf-8")
